"""How much memory there is for engines on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pressroom.kernel import EnginesSettings

# What stays for the system, the gateway and whoever works on the machine: a share of it, within bounds.
_RESERVE_SHARE = 0.10
_LEAST_RESERVE = 512 << 20
_MOST_RESERVE = 8 << 30
_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# A cgroup of version 1 without a limit says the largest multiple of a page that fits in 63 bits.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineMemory:
    """Bytes. `engines` is what all engines together may take; `total` what the machine has, or its container may use
    (`limit`, 0 where there is none); `free` what nobody uses at this moment. `how` says where `engines` comes
    from."""

    engines: int
    total: int
    free: int
    limit: int = 0
    how: str = ""


def available(settings: EnginesSettings) -> MachineMemory:
    """Look at the machine; takes some milliseconds. GPUs are not looked at."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    limit, used = container_limit()
    if limit:
        free = min(free, max(0, min(limit, total) - used))
        total = min(total, limit)
    if settings.memory_bytes:
        engines, how = settings.memory_bytes, "the setting engines.memory_bytes"
    else:
        reserve = min(max(int(total * _RESERVE_SHARE), _LEAST_RESERVE), _MOST_RESERVE)
        engines = max(0, total - reserve)
        what = "its container's limit" if limit and total == limit else "the memory of the machine"
        how = f"{what} ({total / 1e9:.1f} GB) less {reserve / 1e9:.1f} GB for everything else"
    return MachineMemory(engines=engines, total=total, free=free, limit=limit, how=how)


def container_limit(*, membership: Path = _MEMBERSHIP, mounted: Path = _CGROUPS) -> tuple[int, int]:
    """The smallest memory limit of the cgroups that this process is in, and what that one uses; zeros without any.

    Both versions of cgroups are understood. A group's limit holds for all below it, so every level is asked; files
    that are caches of the kernel do not count as used.
    """
    smallest, used = 0, 0
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return 0, 0
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = mounted / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for folder in _levels(root, path):
            limit = _number(folder / names[0])
            if limit is not None and limit < _NO_LIMIT and (not smallest or limit < smallest):
                smallest, used = limit, max(0, (_number(folder / names[1]) or 0) - _caches(folder, names[2]))
    return smallest, used


def _levels(root: Path, path: str) -> list[Path]:
    """The folders of a cgroup and of all above it. A container sees its own at the root, and not under its path."""
    parts = [part for part in path.split("/") if part not in ("", "..", ".")]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):  # absent at this level, or the word "max"
        return None


def _caches(folder: Path, name: str) -> int:
    try:
        for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
