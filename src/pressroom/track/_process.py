"""Which process runs a run, said so that it can be told later, on the same machine, whether it still does."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

HOST, BOOT, PID, BEGAN = "pressroom.host", "pressroom.boot", "pressroom.pid", "pressroom.process_started"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Two readings of when a process began differ by the clock's corrections; a new process of the same number is younger.
_TOLERANCE_S = 2.0


def this_process() -> dict[str, str]:
    """Host, boot, process id and when the process began, as tags."""
    import psutil

    return {
        HOST: platform.node(),
        BOOT: _boot(),
        PID: str(os.getpid()),
        BEGAN: f"{psutil.Process().create_time():.2f}",
    }


def is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that these tags are of ran on this machine and does not any more.

    False where it cannot be known: another machine, or a run that somebody else recorded.
    """
    import psutil

    if not tags.get(HOST) or tags.get(HOST) != platform.node():
        return False
    if tags.get(BOOT, "") != _boot():
        return True
    try:
        pid, began = int(tags[PID]), float(tags[BEGAN])
        process = psutil.Process(pid)
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return zombie or abs(process.create_time() - began) > _TOLERANCE_S
    except psutil.NoSuchProcess:
        return True
    except (KeyError, ValueError, psutil.AccessDenied):
        return False


def _boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return ""
