"""Variables of a library's module that its own gradient leaves out, by their kind.

`flax.nnx.grad` differentiates the `Param`s of a module; its `BatchStat`s are in no gradient.
"""

from typing import Any

from jaxnn.verify.returned import WRAPPERS, Expected, Returned


def left_out(out: Returned, expected: Expected) -> dict[str, str]:
    """The leaves of which a gradient holds no variable of the same kind, each with the reason.

    A variable is what wraps one array: where some of a kind are there, none may be missing.
    """
    kinds = {
        name: kind
        for (path, name), kind in zip(expected.names, _innermost(expected.structure), strict=True)
        if path and getattr(path[-1], "name", None) in WRAPPERS
    }
    held = {kind for name, kind in kinds.items() if name in out.leaves}
    return {
        name: f"of the kind {kind.__name__}, of which the gradient holds none"
        for name, kind in kinds.items()
        if held and kind not in held
    }


def _innermost(tree: Any, holder: Any = None) -> list[Any]:
    """The container that holds each leaf of a structure."""
    if tree.num_nodes == 1:
        return [holder] * tree.num_leaves
    kind = tree.node_data()[0]
    return [found for child in tree.children() for found in _innermost(child, kind)]
