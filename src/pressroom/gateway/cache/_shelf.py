"""The answers of one deployment, the one used longest ago first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pressroom.gateway.cache._meaning import Group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.gateway.cache._hit import Entry
    from pressroom.gateway.cache._keys import Where
    from pressroom.gateway.routes import Route, Served

# What an answer takes beside its bytes: the entry, its key, its places in tables that grow. 480 to 640 as tracemalloc
# has it.
OVERHEAD = 640
_MARKS = 256


class Shelf:
    """Entries with their memory, and the figures of this deployment, which only ever grow. `evictions` are for want of
    room; `refused` were cut, too large, or not understood."""

    __slots__ = (
        "_groups",
        "_marks",
        "_meant",
        "_served",
        "_versions",
        "bytes",
        "entries",
        "evictions",
        "hits",
        "meaning_hits",
        "misses",
        "refused",
        "stores",
    )

    def __init__(self) -> None:
        self.entries: OrderedDict[Where, Entry] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.meaning_hits = 0
        self.misses = 0
        self.stores = 0
        self.evictions = 0
        self.refused = 0
        self._served: Served | None = None
        self._versions: frozenset[str] = frozenset()
        self._marks: dict[tuple[Route, str], Route] = {}
        self._groups: dict[Where, Group] = {}
        # Those with a vector, likewise in the order of use.
        self._meant: OrderedDict[Where, Entry] = OrderedDict()

    def versions(self, served: Served) -> frozenset[str]:
        """Digests of what answers now."""
        if served is not self._served:
            branches = served.branches.values() if served.branches else (served,)
            self._versions = frozenset(lane.route.digest for branch in branches for lane in branch.lanes)
            self._served = served
        return self._versions

    def marked(self, route: Route, cache: str) -> Route:
        """`route` as that of an answer that was kept."""
        found = self._marks.get((route, cache))
        if found is None:
            if len(self._marks) >= _MARKS:
                self._marks.clear()
            found = self._marks[route, cache] = replace(route, cache=cache)
        return found

    def touch(self, entry: Entry, now: float) -> None:
        """It was used just now."""
        entry.used = now
        self.entries.move_to_end(entry.where)
        if entry.group is not None:
            self._meant.move_to_end(entry.where)

    def put(self, entry: Entry) -> int:
        """Keep an entry, in place of one to the same question; how many bytes are kept more than before."""
        before = self.bytes
        self.drop(entry.where)
        self.entries[entry.where] = entry
        self.bytes += entry.size
        self.stores += 1
        return self.bytes - before

    def drop(self, where: Where) -> int:
        """Forget an entry; the bytes it took."""
        entry = self.entries.pop(where, None)
        if entry is None:
            return 0
        self._without_meaning(entry)
        self.bytes -= entry.size
        return entry.size

    # By meaning.

    def mean(self, entry: Entry, where: Where, vector: NDArray[Any], *, most: int) -> None:
        """Let an entry be found by its vector too, among the `most` that are."""
        group = self._groups.get(where)
        if group is None:
            group = self._groups[where] = Group(where)
        if group.add(entry, vector):
            self._meant[entry.where] = entry
        while len(self._meant) > most:
            self._without_meaning(next(iter(self._meant.values())))

    def group(self, where: Where) -> Group | None:
        """The questions that may be compared with one at `where`."""
        return self._groups.get(where)

    def _without_meaning(self, entry: Entry) -> None:
        group = entry.group
        if group is not None:
            group.remove(entry)
            del self._meant[entry.where]
            if not group.entries:
                del self._groups[group.where]
