"""Pictures of lessons, drawn from real values as SVG that reads on light and on dark pages."""

from jaxnn.learn.pictures.flow import Flow, flow
from jaxnn.learn.pictures.plots import Plot, ladder, memory

__all__ = ["Flow", "Plot", "flow", "ladder", "memory"]
