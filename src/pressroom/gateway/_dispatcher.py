"""A request's way from a door to the engines: what was kept, what it may cost, and which branch is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway._counting import Count, countable
from pressroom.gateway._entrance import Ids, id_of
from pressroom.gateway._generation import Generation, House, branch_gone, no_model
from pressroom.gateway._grant import Books, Grant
from pressroom.gateway._later import Later
from pressroom.gateway._receivers import (
    Guard,
    Reshaping,
    Vector,
    WithoutUsage,
    completion_logprobs,
    usage_apart,
    with_usage,
)
from pressroom.gateway._several import Several, wants_several
from pressroom.gateway._tools import ToolCalls, told_in_words, wants_tools
from pressroom.gateway._usage import TEMPLATE
from pressroom.gateway.admission import ANONYMOUS, Client, Refused
from pressroom.gateway.asking import Asked, Receiver
from pressroom.gateway.cache import Cache, Hit
from pressroom.gateway.money.base import Pending
from pressroom.gateway.policy import Asking, Steerings
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, EMBEDDING, Endpoint, checked, prompts
from pressroom.gateway.routes import Served, lanes_of

if TYPE_CHECKING:
    from pressroom.gateway.cache import CachePolicy, Key

# What a request may lack because its prompt was taken to be longer than it is.
_COUNTED = frozenset(("budget", "tokens"))


class Dispatcher:
    """Asks models for the doors: the Asker of a gateway. Belongs to its event loop."""

    def __init__(self, house: House, books: Books, ids: Ids) -> None:
        self._house = house
        self._ids = ids
        self._routes = house.routes
        self._books = books
        self.steerings = Steerings()
        self.cache = Cache(house.routes, embed=self._embed)

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
        """As `asking.Asker` has it."""
        found = checked(fields, endpoint)
        if isinstance(found, Problem):
            name = fields.get("model")
            self._house.refused(name if isinstance(name, str) else "", door, found.status)
            receiver.failed(found)
            return _NOBODY
        id = id or id_of(self._ids.header())
        return self.ask_checked(fields, endpoint, receiver, door=door, client=client, id=id, body=body)

    def ask_checked(
        self,
        fields: dict[str, Any],
        endpoint: Endpoint,
        receiver: Receiver,
        *,
        door: str,
        client: Client,
        id: str,
        body: bytes | None,
    ) -> Asked:
        """Ask with fields that were checked."""
        model: str = fields["model"]
        served = self._routes.served(model)
        if served is None or not client.caller.may_ask(model):
            self._house.refused("", door, 404)
            receiver.failed(no_model(self._routes, model, client.caller))
            return _NOBODY
        grant = Grant(self._books, client, fields, id=id, door=door)
        if served.cache is not None and client.store:
            kept = self._look(served, served.cache, grant, endpoint, fields)
            if isinstance(kept, Hit):
                return self._give(kept, receiver, grant)
            if kept is not None:
                return self._ask_and_keep(kept, fields, endpoint, receiver, served, grant, body)
        if wants_several(fields):
            return self._ask_several(fields, endpoint, self._guard(receiver, grant), served, grant, body)
        if served.policy is None and not served.branches and not self._books.content:
            return self._ask_branch("", fields, endpoint, receiver, served, grant, body)
        guard = self._guard(receiver, grant)
        return guard.asked(self._steer(fields, endpoint, guard, served, grant, body))

    def _guard(self, receiver: Receiver, grant: Grant) -> Guard:
        return Guard(self._house, receiver, grant, content=self._books.content)

    def _ask_several(
        self,
        fields: dict[str, Any],
        endpoint: Endpoint,
        guard: Guard,
        served: Served,
        grant: Grant,
        body: bytes | None,
    ) -> Asked:
        """Ask for several answers, in one request to an engine that can, else in one for each."""
        # vLLM refuses several greedy answers, because they are all the same; OpenAI gives them.
        greedy = (fields.get("n") or 1) > 1 and fields.get("temperature") == 0
        texts, each = len(prompts(fields)), fields.get("n") or 1
        grant.answers = each * texts
        grant.bound = each * (len(orjson.dumps(fields) if body is None else body) + texts * TEMPLATE)
        if not (served.branches or greedy) and all(lane.route.capabilities.several for lane in served.lanes):
            return guard.asked(self._steer(fields, endpoint, guard, served, grant, body))

        grant.parts = grant.answers

        def one(fields: dict[str, Any], endpoint: Endpoint, receiver: Receiver) -> Asked:
            return self._steer(fields, endpoint, receiver, served, grant, body=None)

        return guard.asked(Several(fields, endpoint, guard, one))

    # What was answered before.

    def _look(
        self, served: Served, policy: CachePolicy, grant: Grant, endpoint: Endpoint, fields: dict[str, Any]
    ) -> Hit | Key | None:
        client = grant.client
        variant = client.tag
        if served.policy is not None and served.policy.split:
            variant = f"{variant}\n{client.caller.key}\n{client.caller.team}"  # an arm of a test has its own answers
        return self.cache.look(policy, client.caller, endpoint, fields, variant=variant, fresh=client.fresh)

    def _give(self, hit: Hit, receiver: Receiver, grant: Grant) -> Asked:
        """Answer with what was kept. It takes a request of the rate, and nothing else."""

        def go(refused: Refused | None) -> Asked:
            self._house.refused(grant.row.model, grant.row.door, 200 if refused is None else refused.problem.status)
            if refused is not None:
                receiver.failed(refused.problem)
                return _NOBODY
            if self._books.content:
                grant.row.answer = hit.body()
            grant.hit(hit.route, hit.kind)
            hit.give(receiver)
            return _NOBODY

        found = grant.cover_hit()
        if not isinstance(found, Pending):
            return go(found)
        later = Later(found.cancel)
        found.wait(lambda held: later.became(go(grant.held(held))))
        return later

    def _ask_and_keep(
        self,
        key: Key,
        fields: dict[str, Any],
        endpoint: Endpoint,
        receiver: Receiver,
        served: Served,
        grant: Grant,
        body: bytes | None,
    ) -> Asked:
        """Ask, and keep the answer; first look for a question alike, where the deployment has that."""

        def ask() -> Asked:
            recording = self.cache.recording(key, receiver)
            guard = Guard(self._house, recording, grant, recording, content=self._books.content)
            if wants_several(fields):
                return self._ask_several(fields, endpoint, guard, served, grant, body)
            return guard.asked(self._steer(fields, endpoint, guard, served, grant, body))

        if not key.by_meaning:
            return ask()
        later = Later(lambda: None)

        def looked(hit: Hit | None) -> None:
            if not later.gone:
                later.became(ask() if hit is None else self._give(hit, receiver, grant))

        self.cache.by_meaning(key, looked)
        return later

    def _embed(self, deployment: str, text: str, then: Callable[[list[float] | None], None]) -> None:
        """The vector of a text, from a deployment of this server. None that would send it to somebody else is asked."""
        served = self._routes.served(deployment)
        if served is None or any(lane.route.elsewhere for lane in lanes_of(served)):
            then(None)
            return
        fields = {"model": deployment, "input": text}
        self.ask(fields, EMBEDDING, Vector(then), door="cache.embeddings", client=ANONYMOUS)

    def _steer(
        self,
        fields: dict[str, Any],
        endpoint: Endpoint,
        receiver: Receiver,
        served: Served,
        grant: Grant,
        body: bytes | None,
    ) -> Asked:
        """Let the policy of the model decide who is asked."""
        if served.policy is None and not served.branches:
            return self._ask_branch("", fields, endpoint, receiver, served, grant, body)
        steering = self.steerings.of(grant.row.model, served.policy)

        def start(branch: str, receiver: Receiver, *, shadow: bool = False) -> Asked:
            if not shadow:
                return self._ask_branch(branch, fields, endpoint, receiver, served, grant, body, asking)
            # A request of its own: its client is the gateway, and what it costs is nobody's key's.
            apart = Grant(self._books, ANONYMOUS, fields, id=f"{grant.row.id}-shadow", door=grant.row.door)
            apart.row.shadow = True
            return self._ask_branch(branch, fields, endpoint, receiver, served, apart, body, asking)

        asking = Asking(fields, endpoint, grant.client.caller, grant.client.tag, grant.row)
        return steering.steer(asking, served, receiver, start)

    def _ask_branch(
        self,
        branch: str,
        fields: dict[str, Any],
        endpoint: Endpoint,
        receiver: Receiver,
        served: Served,
        grant: Grant,
        body: bytes | None,
        asking: Asking | None = None,
    ) -> Asked:
        """Ask the engines of one branch ('': of the model), once there is money for it. What their answers lack of the
        protocol is put right on the way back."""
        if branch:
            # The routes may have changed since this request came.
            now = self._routes.served(grant.row.model) or served
            if branch not in now.branches and now.branches:
                receiver.failed(branch_gone(grant.row.model, branch))
                return _NOBODY
            served = now.branches.get(branch, now)
        lane = served.lanes[0]
        can = lane.route.capabilities
        if endpoint is COMPLETION:
            if fields.get("logprobs") is not None:
                receiver = Reshaping(receiver, completion_logprobs, b'"logprobs"')
            if fields.get("stream") and (fields.get("stream_options") or {}).get("include_usage"):
                receiver = Reshaping(receiver, usage_apart, b'"usage"')
        elif endpoint is CHAT and (len(fields) > 2 or len(fields["messages"]) > 1) and wants_tools(fields, served):
            told, must = told_in_words(fields)
            receiver, fields, body = ToolCalls(receiver, fields, must=must), told, None
        if fields.get("stream") and not can.states_tokens:
            options = fields.get("stream_options")
            if not (options and options.get("include_usage")):
                receiver = WithoutUsage(receiver)
                fields = {**fields, "stream_options": {**(options or {}), "include_usage": True}}
                body = None if options or body is None else with_usage(body)
        sent = orjson.dumps(fields) if body is None else body

        def go(found: Refused | None, served: Served | None = None) -> Asked:
            if found is not None:
                return self._not_admitted(found, grant, receiver, asking)
            generation = Generation(
                self._house,
                fields,
                endpoint,
                receiver,
                body=sent,
                door=grant.row.door,
                grant=grant,
                branch=branch,
                asking=asking,
            )
            generation.start(served)
            return generation

        found = grant.cover(lane.price, size=len(sent), context=lane.route.context)
        if found is None:
            return go(None, served)
        if isinstance(found, Pending):
            return self._when_held(found, grant, go)
        if found.short not in _COUNTED or grant.answers > 1 or not countable(lane, endpoint, fields):
            return go(found)
        first = found

        def counted(tokens: int | None) -> None:
            if tokens is None:
                later.became(go(first))
                return
            again = grant.cover(lane.price, size=len(sent), context=lane.route.context, prompt=tokens)
            later.became(self._when_held(again, grant, go) if isinstance(again, Pending) else go(again))

        # The bound by the length is too much: what does the engine say?
        count = Count(self._house.upstream, lane, endpoint, fields, counted)
        later = Later(count.cancel)
        return later

    def _when_held(self, pending: Pending, grant: Grant, go: Callable[[Refused | None], Asked]) -> Asked:
        later = Later(pending.cancel)
        pending.wait(lambda held: later.became(go(grant.covered(held))))
        return later

    def _not_admitted(self, refused: Refused, grant: Grant, receiver: Receiver, asking: Asking | None) -> Asked:
        if asking is not None:
            asking.refused = True
        if not grant.guarded and not grant.row.shadow:
            self._house.refused(grant.row.model, grant.row.door, refused.problem.status)
        receiver.failed(refused.problem)
        return _NOBODY


class _Nobody(Asked):
    """What was refused before anybody was asked."""

    def cancel(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


_NOBODY = _Nobody()
