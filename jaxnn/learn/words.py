"""What the verifier found, in a student's words: lines of the forward in place of primitives."""

import inspect
import re
from typing import Any

from jaxnn.learn.causes import Cause
from jaxnn.verify.findings import Diagnosis

LOOK = {
    "missing term": "Every line that uses a value sends something back to it: count the lines.",
    "detached": "Every line that uses a value sends something back to it: count the lines.",
    "doubled term": "Is one path counted twice?",
    "sign": "Which line of the forward has a minus in it?",
    "factor": "Look for the constants and the means of the forward.",
    "transpose": "Write the shapes beside each name, and see where the axes change.",
    "wrong axis": "Which axis was summed, or averaged, on the way forward?",
    "not summed": "What was broadcast, or used at every step, adds up on the way back.",
    "wrong derivative": "Differentiate this line by itself, on paper.",
    "derivative left out": "Each line of the forward multiplies the cotangent by its derivative.",
    "wrong saved value": "Does the derivative need the input of the line or its output?",
    "mask": "Follow the mask: which entries reached the output, and which get nothing back?",
    "shifted": "Write down which value each step used: the one before it, or its own?",
    "flip": "The backward goes through the steps from last to first.",
    "index": "Look at how the index is used, and at the first and the last of them.",
    "rounding": "The formula is right, but digits are lost: which numbers nearly cancel?",
    "forward value": "Return a cotangent, not a value of the forward.",
    "copied leaf": "Return the cotangents in the order of the forward's inputs.",
    "swapped leaves": "Return the cotangents in the order of the forward's inputs.",
}
# What says only where something differs, or what may be by chance, is no cause for a student.
KINDS = {
    "missing term": "path",
    "detached": "path",
    "doubled term": "twice",
    "sign": "sign",
    "factor": "factor",
    "transpose": "transpose",
    "wrong axis": "axis",
    "not summed": "broadcast",
    "wrong derivative": "slope",
    "derivative left out": "slope",
    "wrong saved value": "wrong value",
    "mask": "mask",
    "shifted": "time",
    "flip": "time",
    "rounding": "precision",
    "forward value": "forward value",
    "copied leaf": "other cotangent",
    "swapped leaves": "swapped",
}
_PLACE = re.compile(r"\b[a-z_0-9]+ \((\S+?):(\d+)\)")


def in_words(name: str, found: Diagnosis, module: Any) -> Cause | None:
    """Return the verifier's diagnosis of one cotangent in words; None where it is no cause."""
    if found.cause not in KINDS:
        return None
    file = inspect.getsourcefile(module) or ""
    lines = inspect.getsource(module).splitlines()

    def line(match: re.Match[str]) -> str:
        number = int(match[2])
        if not file.endswith(match[1].split("/")[-1]) or number > len(lines):
            return "a line of the forward"
        return f"the line `{lines[number - 1].strip()}`"

    text = _PLACE.sub(line, found.text)
    if re.search(r"\b(reduce_|_p\b|integer_pow|dot_general|broadcast_in|select_n|jaxpr)", text):
        return None
    return Cause(KINDS[found.cause], f"{name}: {text}", LOOK.get(found.cause, ""))
