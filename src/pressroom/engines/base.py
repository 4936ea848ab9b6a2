"""The contract of an engine: one running model behind an OpenAI-shaped HTTP endpoint on this machine.

An engine is a process of its own, so that a crash, a leak or a stuck kernel stays inside it. The contract is small
because HTTP is the interface: whoever serves `POST /v1/chat/completions` and `POST /v1/completions` (with SSE where
`stream` is true) and `GET /health` is an engine.

Promises every backend keeps:
- `start` returns when the model answers, or raises EngineStartError with the last lines the engine wrote.
- The engine ends when its parent does, also on `kill -9`: nothing is left behind.
- `stop` returns only when the process is gone; calling it twice, or before `start`, does nothing.
- `health` never raises and never blocks for more than a second.
Methods are called from one thread at a time, but for `stop`: another thread may call it while `start` waits, which
then raises EngineStartError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pressroom.engines.options import Known, wrong_option
from pressroom.kernel import EngineError

if TYPE_CHECKING:
    from pressroom.kernel import Workspace


class State(StrEnum):
    """Where an engine is in its life."""

    STARTING = "starting"
    READY = "ready"
    #: The process lives, but did not answer in time.
    UNRESPONSIVE = "unresponsive"
    DEAD = "dead"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What an engine can do; what it cannot is refused at the gateway, never ignored in silence."""

    chat: bool = True
    completions: bool = True
    streaming: bool = True
    embeddings: bool = False
    logprobs: bool = False
    json_schema: bool = False
    tools: bool = False
    #: Several answers (`n`) and several prompts to one request, with the tokens of all of them in `usage`.
    several: bool = False
    #: Whether the last event of every stream states its tokens; else they are asked for with `include_usage`.
    states_tokens: bool = False
    #: Whether it says what a request came to that was cut. When the client shuts down its writing side while an answer
    #: is under way, the engine stops and ends with its counts: a stream with a last event
    #: `{"choices": [], "usage": {…}, "cut": true}` and `[DONE]`, a whole answer as status 200 with the same; then
    #: it closes. Figures that are not the engine's own have `"estimated": true`. On a reset it only stops.
    says_counts: bool = False
    #: Whether an answer in one piece may be made to its end though its client has closed its side, and then states its
    #: tokens. Of a stream nothing more comes.
    finishes: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """What to run. `name` is what the model calls itself in answers; `model` is a file or folder, None where the engine
    needs none. `context` is in tokens a request and `threads` counts cores, 0 lets the engine choose. `log` is the file
    its stderr is kept in; `options` are the backend's own.
    """

    name: str
    model: Path | None = None
    context: int = 0
    slots: int = 4
    threads: int = 0
    start_timeout_s: float = 300.0
    stop_timeout_s: float = 5.0
    log: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where a started engine answers, and what it came up with. `context` in tokens a request and `slots` in requests
    it works on at once (0: not known). `capabilities` are set where they depend on the model it loaded, and then stand
    in for those of its class."""

    host: str
    port: int
    pid: int
    context: int = 0
    slots: int = 0
    version: str = ""
    capabilities: Capabilities | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """`memory_bytes` and `peak_memory_bytes` are of the process with all it started, 0 where not known."""

    state: State
    detail: str = ""
    memory_bytes: int = 0
    peak_memory_bytes: int = 0


class Engine(ABC):
    """One running model. A backend is one file under `engines/backends/` with a subclass called `Backend`."""

    #: What this engine can do.
    capabilities: ClassVar[Capabilities] = Capabilities()
    #: The formats of weights it loads (`gguf`, `safetensors`); empty for one that needs no weights.
    formats: ClassVar[tuple[str, ...]] = ()
    #: Requests at once where nobody said how many.
    default_slots: ClassVar[int] = 4

    #: Of several engines that load the same weights, the one with the lowest is preferred.
    rank: ClassVar[int] = 50

    #: Whether the work is done, and charged, by somebody else: then nothing is measured unasked.
    elsewhere: ClassVar[bool] = False

    #: The options it takes, by name; None where only `check_options` or the started engine knows.
    options: ClassVar[Known | None] = None

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise EngineError where these are not options of this engine. Asked before they are written down; the text
        holds no value, because somebody may have put a secret there."""
        wrong = None
        if cls.options is not None:
            wrong = wrong_option(cls.__module__.rpartition(".")[2], options, cls.options)
        if wrong is not None:
            raise EngineError(wrong[0], hint=wrong[1])

    @classmethod
    def unusable(cls, workspace: Workspace) -> str:
        """Why it cannot run here, and what to do about it, in a sentence; '' where it can."""
        return ""

    @classmethod
    def defaults(cls, workspace: Workspace) -> dict[str, Any]:
        """Options that come from the workspace where a deployment does not give them."""
        return {}

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec

    @abstractmethod
    def start(self) -> Endpoint:
        """Start the process and wait until it answers.

        Raises:
            EngineStartError: it ended, or did not become ready in `spec.start_timeout_s`.
            MissingDependencyError: the engine's library is not installed.
        """

    @abstractmethod
    def health(self) -> Health: ...

    @abstractmethod
    def stop(self) -> None:
        """End the process: politely, then after `spec.stop_timeout_s` by force."""

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """The process, or None where none runs."""
