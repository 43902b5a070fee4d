"""What the recurrent layers refuse: their door."""

from typing import Any

from jaxnn.checks import check_integers, check_kind, check_one_dtype, check_range, check_shapes
from jaxnn.ops.recurrent_parts import GATES, CellState, Recurrent
from jaxnn.settings import check_choice, check_flag, check_integer

# What a layer does without, and of what it has what may be left out.
LACKING = {"rnn": ("b_hn", "w_hr", "c"), "lstm": ("b_hn",), "gru": ("w_hr", "c")}
OPTIONAL = ("w_hr",)


def check_recurrent(
    op: str, *inputs: Any, reverse: bool, truncate: int | None, **of_cell: Any
) -> None:
    """Refuse what `jaxnn.ops.recurrent.rnn_fwd` and the others say that they raise."""
    params, state, x, lengths = inputs
    check_kind(f"{op}: params", params, Recurrent)
    check_kind(f"{op}: state", state, CellState)
    given = params._asdict() | state._asdict()
    for name, value in given.items():
        lacking = name in LACKING[op]
        if not (value is None if lacking else value is not None or name in OPTIONAL):
            found, must = ("an array", "None") if lacking else ("None", "an array")
            raise ValueError(
                f"{op}: {name} is {found}; it must be {must}: take parameters from init_{op}, and "
                f"a state of h{' and c' if op == 'lstm' else ' alone'}"
            )
    check_one_dtype(op, **given, x=x)
    check_flag(f"{op}: reverse", reverse)
    if truncate is not None:
        check_integer(f"{op}: truncate", truncate, hint=", or None for no truncation")
    if "activation" in of_cell:
        check_choice(f"{op}: activation", of_cell["activation"], ("tanh", "relu"))
    if "reset_after" in of_cell:
        check_flag(f"{op}: reset_after", of_cell["reset_after"])
    p = "H" if params.w_hr is None else "P"  # the units of h, where they are projected
    forms = {"w_x": "DG", "w_h": f"{p}G", "b": "G", "b_hn": "H", "w_hr": "HP", "h": f"N{p}"}
    forms["c"] = "NH"
    arrays = {name: (value, forms[name]) for name, value in given.items() if value is not None}
    fix = f"check that all are of one batch, or take parameters from init_{op}"
    sizes = check_shapes(op, fix, **arrays, x=(x, "NTD"))
    for what, size in (("steps", sizes.T), ("features", sizes.D)):
        check_integer(f"{op}: the number of {what} of x (N, T, D) of shape {x.shape}", size)
    if GATES[op] * sizes.H != sizes.G:
        raise ValueError(
            f"{op}: w_h has shape {params.w_h.shape}; it must be ({p}, {GATES[op]} H), gates of H "
            f"units side by side: take parameters from init_{op}"
        )
    if lengths is not None:
        check_shapes(op, "pass one length per sequence", x=(x, "NTD"), lengths=(lengths, "N"))
        check_integers(f"{op}: lengths", lengths, "count the real steps, for example mask.sum(1)")
        rule = f"x has {sizes.T} steps: cut the length or pad x"
        check_range(f"{op}: length", lengths, sizes.T + 1, rule)
