"""Learn to write gradients by hand: what lessons are made of, and exercises that are graded.

`Lines` takes a forward line by line and holds every line of a backward to autodiff; `derive`
typesets a derivation from the expressions that it evaluates; `same` compares; `show_source` and
`saved` show the library's own code and what it saves. On the command line: `python -m jaxnn.learn`.
"""

from jaxnn.learn.compare import WrongStep, same
from jaxnn.learn.derive import derive
from jaxnn.learn.lines import Lines
from jaxnn.learn.notebook import check
from jaxnn.learn.pictures import flow, ladder, memory
from jaxnn.learn.shown import saved, show_source

__all__ = [
    "Lines",
    "WrongStep",
    "check",
    "derive",
    "flow",
    "ladder",
    "memory",
    "same",
    "saved",
    "show_source",
]
