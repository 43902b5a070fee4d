"""The value and gradient of a model's loss, compiled for a layout without any parameters."""

from types import ModuleType
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnn import mesh as meshes
from jaxnn.ledger.layout import Layout, Rules
