"""How Python itself is set in a process whose first duty is an event loop."""

from __future__ import annotations

import gc
import sys

# Of new objects, after which the collector looks for cycles among them: requests leave hardly any, and twenty of them
# make the usual 700.
_COLLECT_AFTER = (20_000, 20, 50)
# Seconds after which a thread that computes hands over to the loop; the usual 5 ms are seen in the latency.
_SWITCH_S = 0.001


def tuned_for_a_loop() -> None:
    """Once all is loaded that stays: what is there now is not looked through for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    sys.setswitchinterval(_SWITCH_S)
