"""What this machine is: said on every sheet beside the figures measured on it, and by `press doctor`."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """`memory_bytes` is what is installed; `cores` is what this process may use, `physical_cores` without siblings."""

    system: str
    processor: str
    cores: int
    physical_cores: int
    memory_bytes: int
    python: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory_bytes / 1e9:.0f} GB, {self.system}"


def is_running(process: int) -> bool:
    """Whether a process of that number is there, this user's or somebody else's."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def this_machine() -> Machine:
    """Look at the machine; takes some milliseconds."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=usable,
        # A container may see more cores than it may use.
        physical_cores=max(1, min(usable, psutil.cpu_count(logical=False) or usable)),
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
    )


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
