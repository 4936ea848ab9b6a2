"""How Python itself is set in a process whose first duty is an event loop."""

from __future__ import annotations

import gc
import os
import sys
import threading
from contextlib import suppress

# Of new objects, after which the collector looks for cycles among them: requests leave hardly any, and twenty of them
# make the usual 700.
_COLLECT_AFTER = (20_000, 20, 50)
# Seconds after which a thread that computes hands over to the loop; the usual 5 ms are seen in the latency.
_SWITCH_S = 0.001
# A tenth of the loop's weight where both want the core.
_NICE = 10


def tuned_for_a_loop() -> None:
    """Once all is loaded that stays: what is there now is not looked through for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    sys.setswitchinterval(_SWITCH_S)


def give_way() -> None:
    """The thread that calls this works when the event loop beside it does not need the core, and a little when it does.

    Else the system lets it finish its slice of some milliseconds first, and every request waits for that. Only Linux
    knows threads of different weight; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
