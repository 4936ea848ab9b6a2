"""Which offsets of a partition are done, and up to where all are."""

from __future__ import annotations

from collections import deque


class Partition:
    """What was received of one partition and is not committed yet."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._done: set[int] = set()
        self._held: set[int] = set()
        #: Everything below is done.
        self.mark = 0
        self.committed = 0
        self.owned = True

    def __len__(self) -> int:
        return len(self._order)

    def take(self, offset: int) -> bool:
        """Whether the message there is new: after a rebalance the same one comes again while it is worked on."""
        if offset < self.committed:  # the topic was made anew, or the group set back
            self._order.clear()
            self._done.clear()
            self._held.clear()
            self.mark = self.committed = offset
        if offset < self.mark or offset in self._held:
            return False
        self._order.append(offset)
        self._held.add(offset)
        return True

    def finish(self, offset: int) -> bool:
        """It is done; whether there is more to commit now."""
        if offset not in self._held:
            return False
        self._done.add(offset)
        before = self.mark
        while self._order and self._order[0] in self._done:
            first = self._order.popleft()
            self._done.discard(first)
            self._held.discard(first)
            self.mark = first + 1
        return self.mark > before

    def resume(self, committed: int) -> None:
        """It is ours again, and the group has committed up to `committed` meanwhile."""
        self.owned = True
        self.committed = committed
        self.mark = max(self.mark, committed)
        while self._order and self._order[0] < self.mark:
            first = self._order.popleft()
            self._done.discard(first)
            self._held.discard(first)
