"""Files that are wanted, how far each of them is, and what was brought."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from pressroom.registry.sources._address import Address
from pressroom.registry.sources._checks import Declared
from pressroom.registry.sources._partial import Partial


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A file to fetch to `local`, and to hold against what is `declared`. One that is `optional` need not be there; one
    of more than `most` bytes is refused. `seen`, given the mark ("" for none) and the size of what the server has, says
    under which digest it is here already; where that is `likely`, a byte is asked for first."""

    address: Address
    local: Path
    declared: Declared = field(default_factory=Declared)
    optional: bool = False
    most: int | None = None
    seen: Callable[[str, int], str | None] = lambda _mark, _size: None
    likely: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """A file that is here: at `wanted.local`, or in the store under the digest `blob`. `mark` is what its server
    promises equal bytes by, "" where it does not, and `size` its bytes."""

    wanted: Wanted
    blob: str | None
    mark: str
    size: int


class State(Enum):
    NEW = "not asked for yet"
    PARTS = "coming in parts"
    WHOLE = "to come in one answer"
    HERE = "here, and not checked yet"
    DONE = "done"
    ABSENT = "not there, and need not be"


class Step(Enum):
    BEGIN = "ask what it is"
    WHOLE = "fetch it in one answer"
    CHECK = "hold it against what was declared"


class File:
    """What is known of one file. `state`, `partial` and `busy` change under the lock of the downloads only."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.state = State.NEW
        self.partial: Partial | None = None
        self.blob: str | None = None
        self.mark = ""
        self.size = wanted.declared.size
        self.came = 0  # where it comes in one answer
        self.farthest = 0  # that any answer came
        self.checked = 0
        self.changes = 0  # how often it was begun anew
        self.busy: set[int | Step] = set()

    @property
    def finished(self) -> bool:
        return self.state in (State.DONE, State.ABSENT)

    @property
    def done(self) -> int:
        return self.partial.done if self.partial is not None else self.came

    def steps(self) -> Iterator[int | Step]:
        """What somebody could do now: fetch one of these parts, or what only one can do at a time."""
        if self.state is State.PARTS:
            assert self.partial is not None
            missing = self.partial.missing()
            yield from (number for number in missing if number not in self.busy)
            if not missing and not self.busy:
                yield Step.CHECK
        elif not self.busy and not self.finished:
            yield {State.NEW: Step.BEGIN, State.WHOLE: Step.WHOLE, State.HERE: Step.CHECK}[self.state]
