"""The contract between the gateway, which can ask a branch of a deployment, and the policy, which decides on one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pressroom.gateway.admission import Caller
    from pressroom.gateway.asking import Asked, Receiver
    from pressroom.gateway.ledger import Row
    from pressroom.gateway.protocols.openai import Endpoint
    from pressroom.gateway.routes import Served


class Asking:
    """A request as a policy sees it. `tag` is what the client's header `pressroom-tag` said; what the policy finds goes
    into `row.verdicts`."""

    __slots__ = ("caller", "endpoint", "fields", "row", "tag")

    def __init__(self, fields: dict[str, Any], endpoint: Endpoint, caller: Caller, tag: str, row: Row) -> None:
        self.fields = fields
        self.endpoint = endpoint
        self.caller = caller
        self.tag = tag
        self.row = row


class Start(Protocol):
    """Asks one branch. A branch whose money is not there, or that does not answer, says so with `failed`, before
    anything else where nothing of an answer has come."""

    def __call__(self, branch: str, receiver: Receiver, *, shadow: bool = False) -> Asked: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How the branches of one deployment are chosen among. PLACEHOLDER of the contract: the policy part fills it in."""

    def steer(self, asking: Asking, served: Served, receiver: Receiver, start: Start) -> Asked:
        """Ask the branches of `served` for `asking`, and give `receiver` one answer or the last refusal."""
        raise NotImplementedError
