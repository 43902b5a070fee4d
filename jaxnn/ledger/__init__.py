"""What the devices of a mesh send each other: predicted on paper, and found in programs.

predicted(layout, batch)                        what a layout must send, by formulas
found(compiled, mesh)                           what a compiled program sends, read from it
differences(predicted, found)                   where the two differ, in words

python -m jaxnn.ledger gpt --mesh data=2,model=4    both side by side, and how long it takes
"""

from jaxnn.ledger.found import found as found
from jaxnn.ledger.paper import predicted as predicted
from jaxnn.ledger.sent import Sent as Sent
from jaxnn.ledger.sent import differences as differences
from jaxnn.ledger.sent import totals as totals

__all__ = ["Sent", "differences", "found", "predicted", "totals"]
