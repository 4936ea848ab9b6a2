"""From one version to the next: beside the old one, asked, watched, taken over, withdrawn; and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.deploy import Checks, Deployment, Phase, RouteWish, Verdict, roll_back, wait_for_switch, way_back
from pressroom.deploy.deployments import SERVER_LOCK
from pressroom.kernel import DeployError, NotFoundError, RolloutSettings, Workspace

from .house import Echoes, House, opened, until

GB = 10**9
SETTINGS = RolloutSettings()
NONSENSE = {"text": "the", "tokens": 400}


def checked(**given: Any) -> dict[str, Any]:
    return Checks.parse(given, SETTINGS).as_dict()


@pytest.fixture(scope="module")
def echoes() -> Iterator[Echoes]:
    found = Echoes()
    yield found
    found.close()


@pytest.fixture
def house(tmp_path: Path, echoes: Echoes) -> Iterator[House]:
    with opened(tmp_path, echoes) as found:
        yield found


def first(house: House, **more: Any) -> None:
    house.put("chat", "m:1", **more)
    until(lambda: house.phase("chat") is Phase.READY)


def canary(house: House, ref: str = "m:2", **more: Any) -> Deployment:
    given = {"canary": 10, "watch_s": 0.0, "max_watch_s": 600.0, "min_requests": 20, **more.pop("checks", {})}
    wish = house.put("chat", ref, rollout=checked(**given), **more)
    until(lambda: "main~new" in house.shares("chat"))
    return wish


# Taking over.


def test_a_version_that_answers_with_text_takes_over_and_the_old_one_stays_warm(house: House) -> None:
    first(house)
    house.put("chat", "m:2", rollout=checked())
    until(lambda: house.phase("chat") is Phase.READY and house.serves("chat") == ["m:2"])
    assert not house.cluster.of("m:1")[0].stopped, "it is kept warm"
    until(lambda: house.last("chat").verdict is Verdict.TOOK_OVER)
    rollout = house.last("chat")
    assert (rollout.from_ref, rollout.to_ref, rollout.figures["sanity"]) == ("m:1", "m:2", "text")
    standing = house.deployments.standing("chat")
    assert [route.ref for route in standing.serving] == ["m:2"]
    assert standing.previous is not None and [route.ref for route in standing.previous] == ["m:1"]
    assert standing.warm == (standing.previous[0].mark,)


def test_the_old_one_is_warm_for_its_time_only(house: House) -> None:
    first(house)
    house.put("chat", "m:2", rollout=checked(keep_warm_s=0.3))
    until(lambda: house.serves("chat") == ["m:2"])
    until(lambda: house.cluster.of("m:1")[0].stopped)
    until(lambda: house.deployments.standing("chat").warm == ())


def test_a_version_that_says_one_token_over_and_over_never_takes_traffic(house: House) -> None:
    first(house)
    house.put("chat", "m:2", options=NONSENSE, rollout=checked(canary=50))
    seen = set()
    while house.phase("chat") is not Phase.FAILED:
        seen.update(house.serves("chat"))
    assert seen == {"m:1"} and "'the' over and over" in house.detail("chat")
    assert "m:1 goes on answering" in house.detail("chat")
    until(lambda: house.cluster.of("m:2")[0].stopped)
    until(lambda: house.last("chat").verdict is Verdict.WITHDRAWN)
    assert "over and over" in house.last("chat").reason
    assert not house.cluster.of("m:1")[0].stopped and house.serves("chat") == ["m:1"]


def test_a_model_that_always_spoke_so_may_go_on(house: House) -> None:
    first(house, options=NONSENSE)
    house.put("chat", "m:2", options=NONSENSE, rollout=checked())
    until(lambda: house.serves("chat") == ["m:2"])


def test_the_smoke_set_is_asked_of_the_engine_itself(house: House, tmp_path: Path) -> None:
    first(house)
    questions = tmp_path / "smoke.jsonl"
    questions.write_text('{"messages": [{"role": "user", "content": "2 + 2?"}], "expect": "4"}\n')
    wrong = house.put("chat", "m:2", options={"text": "five, I think"}, rollout=checked(smoke=str(questions)))
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert "question 1 of the smoke set" in house.detail("chat") and "'4'" in house.detail("chat")
    house.put("chat", "m:3", options={"text": "it is 4"}, rollout=checked(smoke=str(questions)))
    until(lambda: house.serves("chat") == ["m:3"])
    assert wrong.generation < house.deployments.get("chat").generation


def test_a_first_version_is_asked_what_it_must_know(house: House, tmp_path: Path) -> None:
    questions = tmp_path / "smoke.jsonl"
    questions.write_text('{"messages": [{"role": "user", "content": "2 + 2?"}], "expect": "4"}\n')
    house.put("chat", "m:1", options={"text": "five"}, rollout=checked(smoke=str(questions)))
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert house.serves("chat") == [] and "'4'" in house.detail("chat")


def test_agreement_is_of_the_first_token(house: House) -> None:
    first(house, options={"text": "yes it is"})
    house.put("chat", "m:2", options={"text": "no it is not"}, rollout=checked(agreement=0.5))
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert "on 0% of the questions" in house.detail("chat")
    house.put("chat", "m:3", options={"text": "yes but why"}, rollout=checked(agreement=1.0))
    until(lambda: house.serves("chat") == ["m:3"])


# The canary.


def test_a_canary_has_its_share_and_takes_over_when_it_was_watched(house: House) -> None:
    first(house)
    canary(house)
    assert house.shares("chat") == pytest.approx({"main": 0.9, "main~new": 0.1})
    assert house.serves("chat") == ["m:1", "m:2"] and house.phase("chat") is Phase.STARTING
    house.request("chat", "main", times=100)
    house.request("chat", "main~new", times=19)
    until(lambda: "19 so far" in house.detail("chat"))
    assert house.serves("chat") == ["m:1", "m:2"], "not enough yet"
    house.request("chat", "main~new")
    until(lambda: house.serves("chat") == ["m:2"] and house.phase("chat") is Phase.READY)
    until(lambda: house.last("chat").verdict is Verdict.TOOK_OVER)
    assert house.last("chat").figures["watch"]["new"]["answered"] == 20


def test_errors_withdraw_a_canary_at_once(house: House) -> None:
    first(house)
    canary(house, checks={"watch_s": 600.0})
    house.request("chat", "main", times=100)
    house.request("chat", "main~new", times=5)
    house.request("chat", "main~new", worked=False, times=3)
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert "3 of its 8 requests failed" in house.detail("chat") and house.serves("chat") == ["m:1"]
    until(lambda: house.cluster.of("m:2")[0].stopped)


def test_errors_that_the_old_version_has_too_withdraw_nothing(house: House) -> None:
    first(house)
    canary(house)
    house.request("chat", "main", times=50)
    house.request("chat", "main", worked=False, times=50)
    house.request("chat", "main~new", worked=False, times=9)
    house.request("chat", "main~new", times=11)
    until(lambda: house.serves("chat") == ["m:2"])


def test_a_slow_canary_is_withdrawn(house: House) -> None:
    first(house)
    canary(house)
    house.request("chat", "main", seconds=0.1, times=50)
    house.request("chat", "main~new", seconds=0.4, times=20)
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert "400 ms" in house.detail("chat") and "100 ms" in house.detail("chat")


def test_a_canary_that_dies_is_withdrawn(house: House) -> None:
    first(house)
    canary(house)
    house.cluster.of("m:2")[0].now = dataclasses.replace(
        house.cluster.of("m:2")[0].now, phase=Phase.BACKOFF, detail="killed by signal 9"
    )
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert "killed by signal 9" in house.detail("chat") and house.serves("chat") == ["m:1"]


def test_a_newer_version_takes_the_place_of_one_that_was_coming(house: House) -> None:
    first(house)
    canary(house)
    canary(house, "m:3")
    until(lambda: house.serves("chat") == ["m:1", "m:3"])
    until(lambda: house.cluster.of("m:2")[0].stopped)
    until(lambda: house.deployments.rollouts("chat")[1].verdict is Verdict.REPLACED)
    house.request("chat", "main", times=20)
    house.request("chat", "main~new", times=20)
    until(lambda: house.serves("chat") == ["m:3"])
    until(lambda: [way.ref for way in house.deployments.standing("chat").previous or ()] == ["m:1"])


def test_a_version_that_was_withdrawn_is_tried_again_when_it_is_asked_for_again(house: House) -> None:
    first(house)
    house.put("chat", "m:2", options=NONSENSE, rollout=checked())
    until(lambda: house.phase("chat") is Phase.FAILED)
    house.deployments.retry("chat")
    until(lambda: len(house.cluster.of("m:2")) == 2)
    until(lambda: len(house.deployments.rollouts("chat")) == 3)


# Back.


def test_going_back_is_a_switch_that_starts_nothing(house: House) -> None:
    first(house)
    house.put("chat", "m:2", rollout=checked())
    until(lambda: house.deployments.standing("chat").warm)
    launched = len(house.cluster.launched)
    wish = roll_back(house.deployments, "chat", keep_warm_s=600)
    wait_for_switch(house.deployments, wish, timeout_s=30)
    assert house.serves("chat") == ["m:1"] and wish.ref == "m:1"
    # And forth again: what was left is warm in its turn.
    until(lambda: house.deployments.standing("chat").warm)
    wait_for_switch(house.deployments, roll_back(house.deployments, "chat", keep_warm_s=600), timeout_s=30)
    assert house.serves("chat") == ["m:2"] and len(house.cluster.launched) == launched
    assert not any(replica.stopped for replica in house.cluster.launched)


def test_what_runs_is_finished_on_its_engine_in_either_direction(house: House) -> None:
    first(house)
    lane = house.routes.lane("chat")
    assert lane is not None and house.routes.enter(lane)
    house.put("chat", "m:2", rollout=checked(keep_warm_s=0.0))
    until(lambda: house.serves("chat") == ["m:2"])
    newer = house.routes.lane("chat")
    assert newer is not None and house.routes.enter(newer)
    until(lambda: house.deployments.standing("chat").previous)
    wish = roll_back(house.deployments, "chat", keep_warm_s=0.0, load=True)
    wait_for_switch(house.deployments, wish, timeout_s=30)
    assert house.serves("chat") == ["m:1"]
    assert not house.cluster.of("m:1")[0].stopped and not house.cluster.of("m:2")[0].stopped
    lane.load.running -= 1
    newer.load.running -= 1
    until(lambda: house.cluster.of("m:1")[0].stopped and house.cluster.of("m:2")[0].stopped)
    assert not house.cluster.of("m:1")[1].stopped


def test_what_is_no_longer_warm_is_loaded_only_when_that_is_said(house: House) -> None:
    first(house)
    house.put("chat", "m:2", rollout=checked(keep_warm_s=0.0))
    until(lambda: house.cluster.of("m:1")[0].stopped and house.deployments.standing("chat").previous)
    with pytest.raises(DeployError, match="m:1 is no longer warm") as refused:
        roll_back(house.deployments, "chat", keep_warm_s=600)
    assert "--load" in refused.value.hint
    wish = roll_back(house.deployments, "chat", keep_warm_s=600, load=True)
    wait_for_switch(house.deployments, wish, timeout_s=30)
    assert house.serves("chat") == ["m:1"] and len(house.cluster.of("m:1")) == 2


def test_going_back_cancels_a_roll_out(house: House) -> None:
    first(house)
    canary(house)
    wish = roll_back(house.deployments, "chat", keep_warm_s=600)
    wait_for_switch(house.deployments, wish, timeout_s=30)
    assert wish.ref == "m:1" and house.serves("chat") == ["m:1"]
    until(lambda: house.cluster.of("m:2")[0].stopped and house.last("chat").verdict is Verdict.CANCELLED)
    assert len(house.cluster.of("m:1")) == 1, "what served goes on"


def test_going_back_after_a_withdrawal_clears_it(house: House) -> None:
    first(house)
    house.put("chat", "m:2", options=NONSENSE, rollout=checked())
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert way_back(house.deployments.get("chat"), house.deployments.standing("chat")).cancels
    wish = roll_back(house.deployments, "chat", keep_warm_s=600)
    wait_for_switch(house.deployments, wish, timeout_s=30)
    assert house.phase("chat") is Phase.READY and len(house.cluster.of("m:1")) == 1


def test_there_may_be_nothing_to_go_back_to(house: House) -> None:
    first(house)
    with pytest.raises(DeployError, match="nothing to go back to"):
        roll_back(house.deployments, "chat", keep_warm_s=600)
    with pytest.raises(NotFoundError, match="chad"):
        roll_back(house.deployments, "chad", keep_warm_s=600)
    house.deployments.stop("chat")
    with pytest.raises(DeployError, match="is stopped"):
        roll_back(house.deployments, "chat", keep_warm_s=600)


# A server that ends in the middle of it.


def test_a_server_that_ends_within_a_roll_out_leaves_the_old_version_serving(tmp_path: Path, echoes: Echoes) -> None:
    with opened(tmp_path, echoes) as house:
        first(house)
        canary(house)
        until(lambda: house.deployments.rollouts("chat"))
    with opened(tmp_path, echoes) as house:
        until(lambda: house.serves("chat") == ["m:1"])
        until(lambda: "main~new" in house.shares("chat"))
        assert [each.wish.ref for each in house.cluster.launched] == ["m:1", "m:2"], "the old one is first"
        house.request("chat", "main", times=20)
        house.request("chat", "main~new", times=20)
        until(lambda: house.serves("chat") == ["m:2"])
        until(lambda: house.last("chat").verdict is Verdict.TOOK_OVER)
        assert any("it begins again" in step["says"] for step in house.last("chat").steps)


def test_a_version_that_was_withdrawn_stays_so_in_the_next_server(tmp_path: Path, echoes: Echoes) -> None:
    with opened(tmp_path, echoes) as house:
        first(house)
        house.put("chat", "m:2", options=NONSENSE, rollout=checked())
        until(lambda: house.phase("chat") is Phase.FAILED)
        until(lambda: house.last("chat").verdict is Verdict.WITHDRAWN)
    with opened(tmp_path, echoes) as house:
        until(lambda: house.serves("chat") == ["m:1"] and house.phase("chat") is Phase.FAILED)
        assert "over and over" in house.detail("chat")
        assert [each.wish.ref for each in house.cluster.launched] == ["m:1"]


def test_what_is_warm_is_so_in_one_server_only(tmp_path: Path, echoes: Echoes) -> None:
    with opened(tmp_path, echoes) as house:
        first(house)
        house.put("chat", "m:2", rollout=checked())
        until(lambda: house.deployments.standing("chat").warm)
    with opened(tmp_path, echoes) as house:
        until(lambda: house.phase("chat") is Phase.READY)
        with pytest.raises(DeployError, match="no longer warm"):
            roll_back(house.deployments, "chat", keep_warm_s=600)
        assert [each.wish.ref for each in house.cluster.launched] == ["m:2"]


# Several routes.


def route(name: str, ref: str, **more: Any) -> RouteWish:
    return RouteWish(name=name, ref=ref, digest=f"sha256-{ref}", engine="echo", **more)


def put_routes(house: House, *routes: RouteWish, **more: Any) -> Deployment:
    return house.put("chat", routes[0].ref, routes=routes, **more)


def test_each_route_is_a_branch_with_its_share(house: House) -> None:
    put_routes(house, route("a", "m:1", weight=3.0), route("b", "n:1"), policy={"fallback": {"order": ["b", "a"]}})
    until(lambda: house.phase("chat") is Phase.READY)
    assert house.shares("chat") == {"a": 3.0, "b": 1.0}
    served = house.routes.served("chat")
    assert served is not None and served.policy is not None and served.policy.order == ("b", "a")


def test_shares_and_policy_change_and_nothing_restarts(house: House) -> None:
    put_routes(house, route("a", "m:1"), route("b", "n:1"))
    until(lambda: house.phase("chat") is Phase.READY)
    put_routes(house, route("a", "m:1", weight=0.0), route("b", "n:1", weight=5.0), policy={"retry": {"attempts": 3}})
    until(lambda: house.shares("chat") == {"a": 0.0, "b": 5.0})
    served = house.routes.served("chat")
    assert served is not None and served.policy is not None and served.policy.retry.attempts == 3
    until(lambda: house.phase("chat") is Phase.READY)
    assert len(house.cluster.launched) == 2 and house.deployments.rollouts("chat")[-1].generation == 1
    assert len(house.deployments.rollouts("chat")) == 2


def test_a_new_version_on_one_route_leaves_the_other_alone(house: House) -> None:
    put_routes(house, route("a", "m:1"), route("b", "n:1"))
    until(lambda: house.phase("chat") is Phase.READY)
    rollout = checked(canary=25, min_requests=10, watch_s=0.0, max_watch_s=600.0)
    put_routes(house, route("a", "m:2", weight=2.0), route("b", "n:1"), rollout=rollout)
    until(lambda: "a~new" in house.shares("chat"))
    assert house.shares("chat") == pytest.approx({"a": 1.5, "a~new": 0.5, "b": 1.0})
    house.request("chat", "a", times=10)
    house.request("chat", "a~new", times=10)
    until(lambda: house.serves("chat") == ["m:2", "n:1"] and house.phase("chat") is Phase.READY)
    assert len(house.cluster.of("n:1")) == 1
    wish = roll_back(house.deployments, "chat", keep_warm_s=600)
    wait_for_switch(house.deployments, wish, timeout_s=30)
    assert house.serves("chat") == ["m:1", "n:1"] and len(house.cluster.launched) == 3
    assert [way.weight for way in wish.ways] == [2.0, 1.0], "shares stay"


def test_a_route_that_is_taken_out_answers_until_another_does(tmp_path: Path, echoes: Echoes) -> None:
    with opened(tmp_path, echoes, at_once=False) as house:
        put_routes(house, route("a", "m:1"), route("b", "n:1"))
        until(lambda: len(house.cluster.launched) == 2)
        for replica in house.cluster.launched:
            replica.come_up()
        until(lambda: house.phase("chat") is Phase.READY)
        put_routes(house, route("c", "o:1"), route("d", "p:1"))
        until(lambda: len(house.cluster.launched) == 4)
        assert house.serves("chat") == ["m:1", "n:1"]
        house.cluster.of("o:1")[0].come_up()
        house.cluster.of("p:1")[0].come_up()
        until(lambda: house.serves("chat") == ["o:1", "p:1"])
        until(lambda: house.cluster.of("m:1")[0].stopped and house.cluster.of("n:1")[0].stopped)


def test_a_route_that_has_never_been_up_gets_no_share(tmp_path: Path, echoes: Echoes) -> None:
    with opened(tmp_path, echoes, at_once=False) as house:
        put_routes(house, route("a", "m:1"), route("b", "n:1"))
        until(lambda: len(house.cluster.launched) == 2)
        house.cluster.of("m:1")[0].come_up()
        until(lambda: house.serves("chat") == ["m:1"])
        assert house.shares("chat") == {"a": 1.0, "b": 0.0}
        house.cluster.of("n:1")[0].come_up()
        until(lambda: house.shares("chat") == {"a": 1.0, "b": 1.0})


def test_one_version_becomes_one_of_several_and_is_not_loaded_again(house: House) -> None:
    first(house)
    put_routes(house, route("own", "m:1"), route("other", "n:1"))
    until(lambda: house.serves("chat") == ["m:1", "n:1"])
    assert len(house.cluster.of("m:1")) == 1


# What is held, in memory and on disk.


def test_what_is_warm_gives_its_room_to_whatever_needs_it(tmp_path: Path, echoes: Echoes) -> None:
    for policy in ("evict", "wait", "refuse"):
        (tmp_path / policy).mkdir()
        with opened(tmp_path / policy, echoes, memory_bytes=7 * GB, when_full=policy) as house:
            house.cluster.sizes |= {"m:1": 3 * GB, "m:2": 3 * GB, "n:1": 3 * GB}
            first(house)
            house.put("chat", "m:2", rollout=checked())
            until(lambda house=house: house.deployments.standing("chat").warm)
            house.put("other", "n:1")
            until(lambda house=house: house.phase("other") is Phase.READY)
            assert house.cluster.of("m:1")[0].stopped and house.serves("chat") == ["m:2"], policy
            until(lambda house=house: house.deployments.standing("chat").warm == ())


def test_versions_that_serve_come_or_are_warm_are_held(house: House) -> None:
    def held(ref: str) -> str | None:
        class Version:
            digest = f"sha256-{ref}"

        return house.deployments.holding(Version())  # type: ignore[arg-type]

    first(house)
    canary(house)
    until(lambda: house.deployments.standing("chat").serving)
    assert "until the next version takes over" in str(held("m:1")) and "runs" in str(held("m:2"))
    house.request("chat", "main", times=20)
    house.request("chat", "main~new", times=20)
    until(lambda: house.deployments.standing("chat").warm)
    assert "warm" in str(held("m:1")) and held("m:9") is None
    house.deployments.stop("chat")
    until(lambda: house.phase("chat") is Phase.STOPPED)
    house.deployments.delete("chat")
    assert held("m:1") is held("m:2") is None


def test_an_old_database_gets_the_new_columns(tmp_path: Path) -> None:
    import sqlalchemy as sa

    from pressroom.deploy import Deployments
    from pressroom.deploy import _tables as tables

    with Workspace.open(tmp_path, environ={}) as workspace:
        database = workspace.database
        with database.begin() as connection:
            connection.execute(sa.text(
                "CREATE TABLE deployments (name VARCHAR(200) PRIMARY KEY, ref VARCHAR(400) NOT NULL, digest VARCHAR(80)"
                " NOT NULL, engine VARCHAR(64) NOT NULL, options JSON NOT NULL, running BOOLEAN NOT NULL, generation"
                " INTEGER NOT NULL, created FLOAT NOT NULL)"
            ))  # fmt: skip
            connection.execute(sa.text(
                "INSERT INTO deployments VALUES ('chat', 'm:1', 'sha256-aa', 'echo', '{\"slots\": 2}', 1, 3, 5.0)"
            ))  # fmt: skip
        database.migrate("deploy", [lambda connection: tables.metadata.create_all(connection)])
        wish = Deployments(workspace).get("chat")
        assert wish.options == {"slots": 2} and wish.generation == 3
        assert wish.policy == wish.cache == wish.rollout == {} and [way.ref for way in wish.ways] == ["m:1"]


def test_the_other_database_keeps_the_same(postgres_url: str, tmp_path: Path) -> None:
    from pressroom.deploy import Deployments, Rollout, Standing

    with (
        Workspace.open(tmp_path, environ={"PRESSROOM_DATABASE": postgres_url}) as workspace,
        workspace.lock(SERVER_LOCK, purpose="test"),
    ):
        deployments = Deployments(workspace)
        ways = (route("a", "m:1", weight=0.5, price={"prompt": 0.15}), route("b", "n:1"))
        wish = deployments.put("chat", ref="m:1", digest="", engine="echo", routes=ways, policy={"retry": {}})
        assert deployments.get("chat") == wish
        standing = Standing(name="chat", serving=ways, previous=ways[:1], generation=1, warm=(ways[0].mark,))
        deployments.write_standing(standing)
        assert deployments.standing("chat") == standing
        rollout = Rollout(
            name="chat", route="a", generation=1, from_ref="", from_digest="", to_ref="m:1", to_digest="", engine="",
        )  # fmt: skip
        for each in (rollout, dataclasses.replace(rollout, reason="again"), dataclasses.replace(rollout, generation=2)):
            deployments.write_rollout(each)
        assert [(each.generation, each.reason) for each in deployments.rollouts("chat")] == [(2, ""), (1, "again")]
        deployments.close_rollouts("chat", 2)
        assert [each.verdict for each in deployments.rollouts("chat")] == [Verdict.UNDER_WAY, Verdict.CANCELLED]
        deployments.delete("chat")
        assert deployments.standing("chat").serving == ()


def test_only_the_last_roll_outs_are_kept(tmp_path: Path) -> None:
    from pressroom.deploy import Deployments, Rollout

    with Workspace.open(tmp_path, environ={}) as workspace:
        deployments = Deployments(workspace)
        deployments.put("chat", ref="m:1", digest="", engine="echo")
        for number in range(205):
            steps = [{"at": 0.0, "says": str(step)} for step in range(150)]
            deployments.write_rollout(
                Rollout(
                    name="chat",
                    route="a",
                    generation=number,
                    from_ref="",
                    from_digest="",
                    to_ref="",
                    to_digest="",
                    engine="",
                    steps=steps,
                )
            )
        kept = deployments.rollouts("chat")
        assert len(kept) == 200 and kept[0].generation == 204 and len(kept[0].steps) == 100


def test_of_two_who_change_a_wish_one_is_told(house: House) -> None:
    first(house)
    stale = house.deployments.get("chat")
    house.put("chat", "m:2", rollout=checked())
    until(lambda: house.deployments.standing("chat").warm)
    with pytest.raises(DeployError, match="changed by somebody else"):
        house.deployments.put_routes(stale, stale.ways, rollout=Checks.none(keep_warm_s=0))
    house.deployments.delete("chat")
    with pytest.raises(DeployError, match="forgotten by somebody else"):
        house.deployments.put_routes(stale, stale.ways, rollout=Checks.none(keep_warm_s=0))


def test_going_back_brings_back_a_route_that_was_taken_out(house: House) -> None:
    put_routes(house, route("a", "m:1"), route("b", "n:1"), rollout=checked())
    until(lambda: house.phase("chat") is Phase.READY)
    put_routes(house, route("a", "m:1"), rollout=checked())
    until(lambda: house.serves("chat") == ["m:1"] and house.deployments.standing("chat").warm)
    wish = roll_back(house.deployments, "chat", keep_warm_s=600)
    wait_for_switch(house.deployments, wish, timeout_s=30)
    assert house.serves("chat") == ["m:1", "n:1"] and len(house.cluster.launched) == 2


def test_a_policy_that_does_not_go_with_the_routes_leaves_them_as_they_were(house: House) -> None:
    put_routes(house, route("a", "m:1"), route("b", "n:1"))
    until(lambda: house.phase("chat") is Phase.READY)
    put_routes(house, route("a", "m:2"), route("b", "n:1"), policy={"fallback": {"order": ["c"]}})
    until(lambda: house.phase("chat") is Phase.FAILED)
    assert "'c'" in house.detail("chat") and house.serves("chat") == ["m:1", "n:1"]
    assert not house.cluster.of("m:1")[0].stopped, "it has the traffic"
    put_routes(house, route("a", "m:2"), route("b", "n:1"), policy={"fallback": {"order": ["b"]}})
    until(lambda: house.serves("chat") == ["m:2", "n:1"] and house.cluster.of("m:1")[0].stopped)
