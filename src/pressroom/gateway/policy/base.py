"""The contract between the gateway, which can ask a branch of a deployment, and the policy, which decides on one.

A `Policy` is what somebody wrote about a deployment: frozen, checked when it is read. What it needs to remember from
one request to the next (which branch failed how often) is in a `Steering`, of which the gateway's one `Steerings` keeps
one for each model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pressroom.gateway.admission import Caller
    from pressroom.gateway.asking import Asked, Receiver
    from pressroom.gateway.ledger import Row
    from pressroom.gateway.protocols.openai import Endpoint

#: In the place of names of branches: all that run on one's own machines.
OWN = "own"


class Asking:
    """A request as a policy sees it. `tag` is what the client's header `pressroom-tag` said; what the policy finds goes
    into `row.verdicts`.

    `own_only` is set by the policy before it asks: whatever the routes become meanwhile, this request must not reach a
    route that is `elsewhere`. `refused` is set by whoever starts a request, just before it says `failed`, where no
    branch was asked because of the gateway's own limits, budgets or disk; the policy takes it back.
    """

    __slots__ = ("caller", "endpoint", "fields", "own_only", "refused", "row", "tag")

    def __init__(self, fields: dict[str, Any], endpoint: Endpoint, caller: Caller, tag: str, row: Row) -> None:
        self.fields = fields
        self.endpoint = endpoint
        self.caller = caller
        self.tag = tag
        self.row = row
        self.own_only = False
        self.refused = False


class Start(Protocol):
    """Asks one branch. A branch whose money is not there, or that does not answer, says so with `failed`, before
    anything else where nothing of an answer has come. It is called once for each try; `shadow` marks a copy, which runs
    beside the request and may be under way when that has ended."""

    def __call__(self, branch: str, receiver: Receiver, *, shadow: bool = False) -> Asked: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How often a branch is asked again before the next one is, and the pause before that: a random part of
    `backoff_s`, which doubles."""

    attempts: int = 2
    backoff_s: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaker:
    """A branch that failed `failures` times in a row (0: never mind) is passed over for `pause_s`; then one request
    tries it."""

    failures: int = 5
    pause_s: float = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds a branch may take to begin its answer, and that the whole may take; None: as the gateway's settings."""

    first_token_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shadow:
    """`branch` gets a copy of this share of the requests; its answers are compared and never sent."""

    branch: str
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class When:
    """What a rule is about. All that is said must hold: of lists one, of `longer_than` more characters than that."""

    personal_data: bool = False
    secret: bool = False
    language: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    team: tuple[str, ...] = ()
    longer_than: int | None = None

    @property
    def reads(self) -> bool:
        """Whether the text of a request must be looked at."""
        return bool(self.personal_data or self.secret or self.language or self.longer_than is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Where `when` holds, `only` these branches may be asked (empty: all), and those of `prefer` before others. `name`
    is what a refusal calls it."""

    name: str
    when: When
    only: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How the branches of one deployment are chosen among.

    `split` says who always gets which branch (`key:NAME`, `team:NAME`, `tag:TEXT`); `order` who is asked next (None:
    the other branches by weight, but for those of weight 0). With `default_rule`, text with personal data or a secret
    is never sent to a vendor where the deployment also has a branch of one's own.
    """

    split: Mapping[str, str] = field(default_factory=dict)
    sticky: bool = False
    order: tuple[str, ...] | None = None
    retry: Retry = field(default_factory=lambda: Retry(attempts=0))
    breaker: Breaker = field(default_factory=Breaker)
    hedge_after_s: float | None = None
    limits: Limits = field(default_factory=Limits)
    shadow: Shadow | None = None
    rules: tuple[Rule, ...] = ()
    default_rule: bool = True

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], branches: Sequence[str], own: Collection[str]) -> Policy:
        """The policy that a deployment file describes. `branches` are the names of its branches (none where it has one
        without a name), `own` those of them that run on one's own machines.

        Raises:
            DeployError: a name or a value that is not allowed; it says where, and what is.
        """
        from pressroom.gateway.policy._reading import read

        return read(mapping, tuple(branches), frozenset(own))

    def as_dict(self) -> dict[str, Any]:
        """As it would stand in a file, without what is left at its default; `parse` reads it back."""
        from pressroom.gateway.policy._writing import written

        return written(self)
