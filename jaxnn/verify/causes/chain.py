"""Find which op of a wrong gradient is wrong, or whether the chain between the ops is.

    manual_grad, watched  ->  every op.fwd(...) and op.bwd(...), with the values that flowed
    each rule             ->  bwd(residuals, dout) against jax.vjp of its fwd, at that dout
    the chain             ->  each dout against the loss's derivative in that op's result:
                              d/d eps of the loss with eps = 0 added to every result

The first of them in backward order that is off is where the gradient begins to be wrong.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.calls import path_name
from jaxnn.verify.causes.between_ops import SUMS, difference_in_words, wrong_chain
from jaxnn.verify.causes.calls import (
    Backward,
    Calls,
    Forward,
    floating_leaves,
    forwards_of_backwards,
    is_traced,
    nth_call,
    shape_fault,
)
from jaxnn.verify.comparison import EXACT
from jaxnn.verify.findings import described
from jaxnn.verify.nearby import moved
from jaxnn.verify.problem import Problem
from jaxnn.verify.programs import compiled
from jaxnn.verify.values import by_path, largest


def locate(problem: Problem, floats: list[Any], rest: list[Any]) -> str:
    """Say what is wrong with a gradient that is chained from ops, in a sentence or two.

    Args:
        problem: a problem whose hand-written gradient was found wrong.
        floats: the parameters, in float64 where the functions take it.
        rest: the other arrays.

    Returns:
        The first op, in backward order, whose own rule is wrong at the values that flowed; or else
        the first whose incoming cotangent is; or why neither could be found. Empty if the
        hand-written gradient calls no op's backward.
    """
    calls = Calls()

    def look() -> str:
        calls.run(problem.manual_grad, floats, rest)
        if not calls.backwards:
            return ""
        found = forwards_of_backwards(calls)
        lost = [k for k, forwards in enumerate(found) if not forwards]
        unchecked = _unchecked(calls.backwards, lost)
        if len(lost) == len(found):
            return f"the ops could not be followed{unchecked}"
        right = f"every op's own rule {'that could be followed ' if lost else ''}is right"
        reason = _wrong_rule(calls, found) or _tried(
            lambda: right + wrong_chain(problem, floats, rest, calls, found),
            f"{right}, so the chain between them is wrong, but where could not be followed",
        )
        return reason + unchecked

    if not _has_ops(problem, floats, rest):
        return ""
    reason = _tried(look, "the ops could not be followed")
    return reason if calls.forwards or calls.backwards else ""


def _has_ops(problem: Problem, floats: list[Any], rest: list[Any]) -> bool:
    """Whether the hand-written gradient may call ops: as a trace tells, which is soon made."""
    calls = Calls()
    try:
        jax.eval_shape(lambda *args: calls.run(problem.manual_grad, *args), floats, rest)
    except Exception:  # without jit a loop looks at its numbers: they will tell
        return True
    return bool(calls.forwards or calls.backwards or calls.unseen)


def _tried(look: Callable[[], str], otherwise: str) -> str:
    """What `look` says, or that it could not and why: a function may refuse to run on numbers."""
    try:
        return look()
    except Exception as error:
        return f"{otherwise}: {described(error)}"


def _unchecked(backwards: list[Backward], lost: list[int]) -> str:
    """Why some backward calls belong to no forward call."""
    if not lost:
        return ""
    first = backwards[lost[0]]
    more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
    if is_traced((first.residuals, first.dout, first.cotangents)):
        why = "runs inside jax.vmap, jax.checkpoint or the like, where no values can be seen"
    else:
        why = "is given residuals that no forward call of that op returned"
    where = nth_call(lost[0], backwards, "backward")
    return f"; op {first.op.name} ({where}){more} was not checked: it {why}"


def _wrong_rule(calls: Calls, found: list[list[int]]) -> str:
    """The first backward call whose cotangents are not those of its forward, at its dout."""
    for k, (backward, candidates) in enumerate(zip(calls.backwards, found, strict=True)):
        if not candidates:
            continue
        forward = calls.forwards[candidates[-1]]
        where = f"op {backward.op.name} ({nth_call(k, calls.backwards, 'backward')})"
        if reason := shape_fault(forward, backward):
            return f"the cotangent that arrives at {where} {reason}: the chain is wrong there"
        if reason := _wrong_cotangent(forward, backward):
            settings = ""
            if repr(forward.static) != repr(backward.static):
                settings = f"; it was called with {backward.static}, its forward {forward.static}"
            return f"the first wrong rule in backward order is that of {where}: {reason}{settings}"
    return ""


def _wrong_cotangent(forward: Forward, backward: Backward) -> str:
    """How what a backward returned differs from autodiff's cotangents of its forward."""
    returned, chosen = backward.cotangents, floating_leaves(forward.inputs)
    if not isinstance(returned, tuple | list):
        return f"it returns no tuple of cotangents but one {type(returned).__name__}"
    if len(returned) != len(forward.inputs):
        return f"it returns {len(returned)} cotangents where inputs are {len(forward.inputs)}"

    arrays = {path: x for path, x in by_path(forward.inputs).items() if isinstance(x, jax.Array)}
    others = {path: x for path, x in arrays.items() if path not in chosen}

    def cotangents(floats: dict[str, Any], douts: dict[str, Any], others: dict[str, Any]) -> Any:
        def outputs(floats: dict[str, Any]) -> dict[str, Any]:
            given = others | floats
            inputs = jax.tree_util.tree_map_with_path(
                lambda path, leaf: given.get(path_name(path), leaf), forward.inputs
            )
            return floating_leaves(forward.op.fwd(*inputs, **forward.static)[0])

        return jax.vjp(outputs, floats)[1](douts)[0]

    incoming = by_path(backward.dout)
    douts = {
        path: jnp.asarray(incoming.get(path, jnp.zeros_like(out)), out.dtype)
        for path, out in floating_leaves(forward.out).items()
    }
    program = compiled(cotangents, chosen, douts, others)
    truth = program.run(chosen, douts, others)
    reason = _first_wrong(forward, backward, [truth], EXACT)
    if not reason:
        return ""
    rng = np.random.default_rng(0)
    nearby = [
        program.run(_moved(chosen, step, rng), _moved(douts, step, rng), others)
        for step in (2.0**-51, -(2.0**-51))
    ]
    relative = max(EXACT, SUMS * program.epsilon)
    return _first_wrong(forward, backward, [truth, *nearby], relative)


def _first_wrong(
    forward: Forward, backward: Backward, truths: list[dict[str, Any]], relative: float
) -> str:
    """How the first wrong cotangent differs. One that is None was not asked for.

    The truth is known at the inputs and maybe where all of them moved in their last place, up and
    down: between those is a kink, whose every slope is right, or rounding, of which a sum may hold
    so many times more.
    """
    returned = backward.cotangents
    names = list(inspect.signature(forward.op.fwd).parameters)
    named = jax.tree_util.tree_leaves_with_path(returned, is_leaf=lambda leaf: leaf is None)
    got = {path_name(path): leaf for path, leaf in named}
    values = (*truths[0].values(), *floating_leaves(backward.dout).values())
    scale = max((largest(np.asarray(x)) for x in values), default=0.0)
    for path in truths[0]:
        first, rest = path[1:].split("]", 1)
        name = (names[int(first)] if int(first) < len(names) else f"input {first}") + rest
        if path in got and got[path] is not None:
            here, *nearby = (np.asarray(truth[path], np.float64) for truth in truths)
            rounding = min((SUMS * largest(there - here) for there in nearby), default=0.0)
            allowed = relative * largest(here) + min(rounding, 1e-12 * scale)
            if reason := difference_in_words(got[path], [here, *nearby], allowed):
                return f"its cotangent of {name} {reason}"
        elif path not in got and returned[int(first)] is not None:
            return f"it returns no cotangent of {name}"
    return ""


def _moved(tree: dict[str, Any], step: float, rng: np.random.Generator) -> dict[str, Any]:
    return dict(zip(tree, moved(list(tree.values()), step, rng), strict=True))
