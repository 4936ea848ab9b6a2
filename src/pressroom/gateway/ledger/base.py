"""The contract of the ledger, and what a row says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a request ended. `left`: its client went away; `lost`: the gateway was killed while it ran."""

    ANSWERED = "answered"
    FAILED = "failed"
    LEFT = "left"
    LOST = "lost"


class Counted(StrEnum):
    """Where its tokens come from: `stated` by the engine; `counted` by the gateway, because the answer was cut, or said
    nothing or nothing that can be true; `none`: no engine worked on it."""

    STATED = "stated"
    COUNTED = "counted"
    NONE = "none"


class Row:
    """One request. Times: `at` in seconds since the epoch, when it was admitted; `first_s` (0: none came) and `total_s`
    in seconds since then. `user` is what the client calls its user; a keyed hash of it is written down.

    `prompt` (the fields of the request) and `answer` (what an engine said: a JSON body, the events of a stream, or
    plain text) are there for what content is kept, and for the language; the ledger takes of them what its setting says
    and forgets the rest. Only with `content` other than `none` is `answer` looked at.
    """

    __slots__ = (
        "answer", "at", "branch", "cache", "cached_tokens", "completion_tokens", "counted", "digest", "door", "engine",
        "first_s", "id", "key", "language", "model", "nano_usd", "outcome", "prompt", "prompt_tokens", "ref", "shadow",
        "status", "stream", "tag", "team", "total_s", "tries", "user", "verdicts",
    )  # fmt: skip

    def __init__(self, id: str, at: float) -> None:
        self.id = id
        self.at = at
        self.key = ""
        self.team = ""
        self.user = ""
        self.tag = ""
        self.model = ""
        #: Which of the deployment's routes answered ('' where it has one), and what ran there.
        self.branch = ""
        self.ref = ""
        self.digest = ""
        self.engine = ""
        self.door = ""
        self.stream = False
        #: A copy that was sent along for comparison, of which the client saw nothing.
        self.shadow = False
        self.status = 0
        self.outcome = Outcome.ANSWERED
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.counted = Counted.NONE
        self.nano_usd = 0
        self.first_s = 0.0
        self.total_s = 0.0
        self.tries = 0
        #: `exact` or `meaning` where the answer was kept from before.
        self.cache = ""
        self.language = ""
        #: What was found of the request by rules (`personal_data`, `secret`), without the text.
        self.verdicts: list[str] = []
        self.prompt: Any = None
        self.answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Opened:
    """A request with a hold that began: as `Ledger.opened` was told."""

    id: str
    at: float
    key: str
    team: str
    model: str
    tokens: int
    nano_usd: int


class Ledger(ABC):
    """Rows in the order requests ended. Used on the event loop; nothing here waits for a disk or a database."""

    @property
    @abstractmethod
    def full(self) -> bool:
        """Whether there is no room for more rows now."""

    @abstractmethod
    def opened(self, id: str, at: float, key: str, team: str, model: str, tokens: int, nano_usd: int) -> bool:
        """A request with a hold begins; a row of the same `id` ends it. False where it cannot be written down (the disk
        is full): it must not run where money or a budget depends on it. True: there is room for its row, too. Called
        again for an `id`, it says what is held for that request now."""

    @abstractmethod
    def append(self, row: Row) -> bool:
        """Write a row down, so that it survives `kill -9` when this returns. False where there is no room: it is kept
        in memory until there is, and nothing new is opened meanwhile."""
