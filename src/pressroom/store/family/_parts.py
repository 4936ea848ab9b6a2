"""What a family store is made of, handed to those who read, write and sweep it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pressroom.store.family import _guard as guard
from pressroom.store.family import _leases as leases
from pressroom.store.family._cache import Cache
from pressroom.store.family._index import Index
from pressroom.store.places.base import Place

# Each takes up to 15 MiB while it codes; more are for whoever sets them.
_MOST_THREADS = 4


@dataclass(frozen=True)
class Parts:
    """`home` is a local directory for the index and the locks; `chains` and `threads` are the settings of [storage].

    `shared`: other machines may put into the same place.
    """

    place: Place
    index: Index
    cache: Cache
    home: Path
    chains: str
    threads: int
    shared: bool = False

    @contextmanager
    def putting(self) -> Iterator[None]:
        """Held while a file is put."""
        with ExitStack() as held:
            held.enter_context(guard.putting(self.home))
            if self.shared:
                held.enter_context(leases.putting(self.place))
            yield

    @contextmanager
    def sweeping(self, wait_s: float | None = None) -> Iterator[None]:
        """Held while a sweep decides what goes. Raises LockedError where others are at work for too long."""
        wait_s = guard.SWEEP_WAIT_S if wait_s is None else wait_s
        with ExitStack() as held:
            held.enter_context(guard.sweeping(self.home, wait_s))
            if self.shared:
                held.enter_context(leases.sweeping(self.place, wait_s))
            yield

    @property
    def workers(self) -> int:
        """How many threads code and decode."""
        return self.threads or min(_MOST_THREADS, os.cpu_count() or 1)
