"""Measures one way of keeping the family, in a process of its own; `store.py` starts it.

    python benchmarks/_store_child.py '{"approach": "zstd1", "files": {...}, "into": DIR, ...}'

An approach takes the files in the order of the family, then gives each back. Both are timed: `cpu` is the time of all
threads of this process in seconds, so bytes / cpu is a rate per core; `wall` is what a clock says. What comes back is
compared with the file byte for byte, outside the time taken. Files and stores are in the page cache.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
# Times the size of a file: what is at hand before it is taken in or given back. ZipNN takes the most, four.
ROOM = 4


class Approach(Protocol):
    """One way of keeping files. `passes` names the ways of restoring that are timed, each over all files."""

    passes: tuple[str, ...]

    def ingest(self, name: str, file: Path) -> None: ...

    def stored(self) -> int:
        """Bytes on the disk for all that was taken in."""

    def prepare(self, how: str, name: str) -> None:
        """What is there before `name` is asked for, and not timed: a parent in memory, an emptied cache."""

    def restore(self, name: str, out: Bytes) -> Any:
        """The bytes of the file: in `out`, which is as long and was written before (None is returned), or in new
        memory."""

    def close(self) -> None: ...


@dataclass
class Taken:
    """Seconds over some work, and its bytes."""

    bytes: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    peak: int | None = None  # resident bytes beyond those before, at the highest
    private: int | None = None  # of those, the ones that are no mapped file
    per: dict[str, float] = field(default_factory=dict)  # CPU seconds by file

    @contextlib.contextmanager
    def timed(self, name: str, size: int) -> Iterator[None]:
        cpu, wall = _cpu(), time.perf_counter()
        yield
        wall, cpu = time.perf_counter() - wall, _cpu() - cpu
        self.cpu += cpu
        self.wall += wall
        self.per[name] = cpu
        self.bytes += size

    def as_dict(self) -> dict[str, Any]:
        return self.__dict__


def _cpu() -> float:
    """CPU seconds of this process and of the ones it has waited for."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def memory_at_hand(size: int) -> None:
    """So many free bytes that the machine has given out before.

    A virtual machine gives memory it has not used for seconds back to its host, and getting it again costs ten times
    what writing to it does. That would be charged to whoever comes first, and to the ways that take the most memory.
    """
    if not size:
        return
    zeros = bytes(1 << 20)
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
        for _ in range(size >> 20):
            room.write(zeros)


def on_disk(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())


def _status(*names: str) -> list[int]:
    """Figures of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[name].split()[0]) * 1024 for name in names]


@contextlib.contextmanager
def memory(taken: Taken) -> Iterator[None]:
    """Keeps in `taken` how much more memory was resident at the highest than at the start. Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
        before, anonymous = _status("VmRSS", "RssAnon")
    except (OSError, KeyError):
        yield
        return
    highest = [anonymous]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            highest.append(max(highest.pop(), _status("RssAnon")[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    taken.peak = max(taken.peak or 0, _status("VmHWM")[0] - before)
    taken.private = max(taken.private or 0, highest[0] - anonymous)


def measure(approach: Approach, files: Mapping[str, Path], *, watch_memory: bool = False) -> dict[str, Any]:
    """Take in all files, then restore each once a pass; the approach is closed."""
    with contextlib.closing(approach):
        return _measured(approach, files, watch_memory=watch_memory)


def _measured(approach: Approach, files: Mapping[str, Path], *, watch_memory: bool) -> dict[str, Any]:
    sizes = {name: file.stat().st_size for name, file in files.items()}
    ingest = Taken()
    grown: dict[str, int] = {}
    held = approach.stored()
    for name, file in files.items():
        memory_at_hand(ROOM * sizes[name])
        with ingest.timed(name, sizes[name]):
            approach.ingest(name, file)
        grown[name] = approach.stored() - held
        held += grown[name]
    passes: dict[str, Any] = {}
    for how in approach.passes:
        passes[how] = restored(approach, how, files, watch_memory=watch_memory).as_dict()
    return {"stored": held, "grown": grown, "raw": sum(sizes.values()), "ingest": ingest.as_dict(), "restore": passes}


def restored(approach: Approach, how: str, files: Mapping[str, Path], *, watch_memory: bool) -> Taken:
    taken = Taken()
    buffer = np.zeros(max(file.stat().st_size for file in files.values()), np.uint8)
    buffer.fill(1)  # every page is there
    for name, file in files.items():
        out = buffer[: file.stat().st_size]
        approach.prepare(how, name)
        memory_at_hand(ROOM * len(out))
        with memory(taken) if watch_memory else contextlib.nullcontext(), taken.timed(name, len(out)):
            made = approach.restore(name, out)
        result = out if made is None else np.frombuffer(made, np.uint8)
        same = np.array_equal(result, np.memmap(file, np.uint8, "r"))
        assert same, f"{type(approach).__name__} gave back other bytes for {name}"
        del made, result
        out[:: 1 << 12] ^= 255  # what is left from this file is not taken for the next one
    return taken


def main() -> None:
    asked = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    files = {name: Path(path) for name, path in asked["files"].items()}
    into = Path(asked["into"])
    into.mkdir(parents=True)
    made: Callable[..., Approach]
    if asked["approach"] == "pressroom":
        from _store_pressroom import run

        print(json.dumps(run(files, into, **asked["options"])))
        return
    from _peers import APPROACHES

    made = APPROACHES[asked["approach"]]
    print(json.dumps(measure(made(into, files), files)))


if __name__ == "__main__":
    main()
