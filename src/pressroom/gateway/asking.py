"""How a door of the gateway asks a model: what it says, and how it hears the answer.

A door (OpenAI, KServe V2 over REST or gRPC) turns its request into the fields of one of OpenAI's two text endpoints, or
of embeddings, and hands them to `Asker.ask` with a `Receiver`. Which engine answers, the wait for one that is starting,
the second try when one dies, and the figures are the asker's; the doors only translate. All of it on the event loop of
the gateway, in callbacks: no task and no future for a request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pressroom.gateway.admission import Client
    from pressroom.gateway.problems import Problem
    from pressroom.gateway.protocols.openai import Endpoint
    from pressroom.gateway.routes import Route


class Receiver(Protocol):
    """Who hears an answer. Told of the end exactly once: `whole`, `end` or `failed`; or nothing more after `cancel`."""

    def whole(self, body: bytes, route: Route) -> None:
        """The complete answer of a request that is not streamed: JSON in OpenAI's shape. `route` says who answered."""

    def begin(self, route: Route) -> None:
        """A stream begins; `data`, then `end` or `failed` follow."""

    def data(self, data: bytes) -> None:
        """The next bytes of a stream: server-sent events in OpenAI's shape, cut anywhere, `[DONE]` at the end."""

    def end(self) -> None:
        """The stream is complete."""

    def failed(self, problem: Problem) -> None:
        """There is no answer, or no more of it."""


class InOnePiece:
    """The part of a Receiver that has nothing to do where no stream is asked for: an engine that sends one nevertheless
    has failed before it comes here."""

    __slots__ = ()

    def begin(self, route: Route) -> None:
        raise AssertionError("nothing here asks for a stream")

    def data(self, data: bytes) -> None:
        raise AssertionError("nothing here asks for a stream")

    def end(self) -> None:
        raise AssertionError("nothing here asks for a stream")


class Asked(ABC):
    """A request under way."""

    @abstractmethod
    def cancel(self) -> None:
        """The client left: the engine stops generating, and the receiver hears nothing more."""

    @abstractmethod
    def pause(self) -> None:
        """Let no more of the stream come until `resume`: the client does not keep up."""

    @abstractmethod
    def resume(self) -> None:
        """Let it come again."""


class Asker(Protocol):
    """Asks a model. The dispatcher of a gateway is one."""

    def ask(
        self,
        fields: dict[str, Any],
        endpoint: Endpoint,
        receiver: Receiver,
        *,
        door: str,
        client: Client,
        id: str = "",
        body: bytes | None = None,
    ) -> Asked:
        """Ask the model `fields["model"]` at `endpoint` (CHAT, COMPLETION or EMBEDDING of `protocols.openai`).

        `fields` are checked as OpenAI's are, and what is wrong with them comes as `failed`; `body` is their JSON where
        the door has it already. `door` names the way in for the figures (`chat.completions`, `v2.generate`, …),
        `client` is who asks, and `id` what the request is called in the ledger (without it, it gets a name). The
        receiver may be called before this returns.
        """
