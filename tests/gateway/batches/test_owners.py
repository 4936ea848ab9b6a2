"""Whose files and batches are whose, and for whom the requests of a batch are made."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from pressroom.gateway.access import Access
from pressroom.gateway.admission import Caller
from pressroom.gateway.batches._batches import Batches
from pressroom.gateway.batches._files import FileStore
from pressroom.gateway.batches.base import Asker
from pressroom.kernel import Keys, Workspace

from .serving import CHAT, Echoes, Serving, ended, jsonl, line, records, route_to, start, until, upload


@pytest.fixture
def keys(workspace: Workspace) -> Keys:
    return Keys(workspace)


@contextmanager
def guarded(workspace: Workspace, keys: Keys, port: int, *, require_key: bool = True) -> Iterator[Serving]:
    """A gateway that looks at keys, as they are when it is made."""
    access = Access(keys, require_key=require_key)
    access.renew()
    with Serving(workspace, route_to(port), access=access) as serving:
        yield serving


def test_who_owns_what() -> None:
    assert Asker.of(Caller()) == Asker()
    assert Asker.of(Caller("a")) == Asker("key:a", "a")
    assert Asker.of(Caller("a", "t")) == Asker("team:t", "a")
    assert Asker.of(Caller("a", "t")).owner != Asker.of(Caller("t")).owner


def missing(call: Callable[[], Any]) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        call()
    assert "No such File" in caught.value.message or "No batch found" in caught.value.message


def test_one_key_does_not_see_what_is_anothers(workspace: Workspace, keys: Keys, echo: Echoes) -> None:
    mine, theirs = (keys.create(name, ["ask"])[1] for name in ("mine", "theirs"))
    with guarded(workspace, keys, echo().port) as serving:
        one, other = serving.client(mine), serving.client(theirs)
        batch = ended(one, start(one, jsonl(line(n) for n in range(5))).id)
        assert batch.status == "completed" and batch.request_counts.completed == 5
        assert serving.asked == {"mine": 5}
        files = [file.id for file in one.files.list()]
        assert set(files) == {batch.input_file_id, batch.output_file_id} and not list(other.files.list())
        assert [found.id for found in one.batches.list()] == [batch.id] and not list(other.batches.list())
        for file in files:
            missing(lambda file=file: other.files.retrieve(file))
            missing(lambda file=file: other.files.content(file))
            missing(lambda file=file: other.files.delete(file))
            missing(lambda file=file: other.files.list(after=file).data)
        missing(lambda: other.batches.retrieve(batch.id))
        missing(lambda: other.batches.cancel(batch.id))
        missing(lambda: other.batches.list(after=batch.id).data)
        missing(lambda: other.batches.create(input_file_id=files[0], endpoint=CHAT, completion_window="24h"))
        # The owner can do all of this.
        assert len(records(one.files.content(batch.output_file_id).read())) == 5
        assert one.files.delete(batch.input_file_id).deleted
        with pytest.raises(openai.AuthenticationError):
            serving.client().files.list()


def test_a_team_shares_and_each_key_pays_for_its_own(workspace: Workspace, keys: Keys, echo: Echoes) -> None:
    ann, bob = (keys.create(name, ["ask"], team="red")[1] for name in ("ann", "bob"))
    red = keys.create("red", ["ask"])[1]  # a key that is called as the team is
    with guarded(workspace, keys, echo().port) as serving:
        file = upload(serving.client(ann), jsonl(line(n) for n in range(3)))
        made = serving.client(bob).batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        assert ended(serving.client(ann), made.id).request_counts.completed == 3
        assert serving.asked == {"bob": 3}
        missing(lambda: serving.client(red).batches.retrieve(made.id))


def test_the_open_gateway_keeps_keys_and_nobody_apart(workspace: Workspace, keys: Keys, echo: Echoes) -> None:
    secret = keys.create("app", ["ask"])[1]
    with guarded(workspace, keys, echo().port, require_key=False) as serving:
        nobody, app = serving.client(), serving.client(secret)
        batch = ended(nobody, start(nobody, jsonl([line(0)])).id)
        assert batch.request_counts.completed == 1 and serving.asked == {"": 1}
        missing(lambda: app.batches.retrieve(batch.id))
        file = upload(app, b"{}")
        missing(lambda: nobody.files.retrieve(file))
    with guarded(workspace, keys, echo().port) as later:  # and what nobody began goes on when keys are asked for
        missing(lambda: later.client(secret).batches.retrieve(batch.id))


def test_a_batch_begun_by_nobody_goes_on_when_keys_are_asked_for(
    workspace: Workspace, keys: Keys, echo: Echoes
) -> None:
    engine = echo(first_delay_s=0.02)
    with Serving(workspace, route_to(engine.port)) as first:
        batch = start(first.client(), jsonl(line(n) for n in range(200)))
        until(lambda: engine.requests > 20)
    with guarded(workspace, keys, engine.port):
        batches = Batches(workspace, FileStore(workspace))
        until(lambda: batches.current(batch.id).status.over, seconds=60)
    assert batches.current(batch.id).counts.completed == 200


def test_a_key_that_is_revoked_ends_its_batch(workspace: Workspace, keys: Keys, echo: Echoes) -> None:
    first = keys.create("app", ["ask"], team="red")[1]
    second = keys.create("other", ["ask"], team="red")[1]
    with guarded(workspace, keys, echo(first_delay_s=0.02).port) as serving:
        assert serving.access is not None
        made = start(serving.client(first), jsonl(line(n) for n in range(400)))
        until(lambda: serving.asked["app"] > 20)
        keys.revoke("app")
        serving.on_loop(serving.access.renew)
        client = serving.client(second)
        batch = ended(client, made.id)
        assert batch.status == "completed" and batch.request_counts.failed > 0
        failed = records(client.files.content(batch.error_file_id).read())
        assert {one["response"]["body"]["error"]["code"] for one in failed} == {"invalid_api_key"}
        assert batch.request_counts.completed + len(failed) == 400


def test_a_batch_that_waits_for_its_rate_holds_up_nobody_else(workspace: Workspace, keys: Keys, echo: Echoes) -> None:
    slow, quick = (keys.create(name, ["ask"])[1] for name in ("slow", "quick"))
    with guarded(workspace, keys, echo().port) as serving:
        wait = json.dumps({"error": {"message": "rate", "code": "rate_limit_exceeded"}}).encode()
        refused: list[float] = []

        def refuse(request: Any) -> tuple[int, bytes, bytes] | None:
            if request.headers.get(b"pressroom-on-behalf") != b"slow":
                return None
            refused.append(time.monotonic())
            return (429, b"retry-after: 30\r\n", wait)

        serving.refusing = refuse
        client = serving.client(slow)
        stuck = [start(client, jsonl(line(n) for n in range(20))).id for _ in range(3)]
        until(lambda: len(refused) > 1)
        other = serving.client(quick)
        assert ended(other, start(other, jsonl(line(n) for n in range(20))).id).request_counts.completed == 20
        states = [client.batches.retrieve(batch).status for batch in stuck]
        assert states == ["in_progress", "in_progress", "validating"]  # an owner has two at once
        for batch in stuck:
            client.batches.cancel(batch)
            assert ended(client, batch).status == "cancelled"


def test_a_spent_budget_is_the_answer_of_a_line(workspace: Workspace, keys: Keys, echo: Echoes) -> None:
    secret = keys.create("app", ["ask"])[1]
    with guarded(workspace, keys, echo().port) as serving:
        spent = json.dumps({"error": {"message": "spent", "code": "insufficient_quota"}}).encode()
        serving.refusing = lambda request: (
            (429, b"retry-after: 3600\r\n", spent) if request.headers.get(b"pressroom-on-behalf") == b"app" else None
        )
        client = serving.client(secret)
        batch = ended(client, start(client, jsonl(line(n) for n in range(3))).id)
        failed = records(client.files.content(batch.error_file_id).read())
        assert [one["response"]["body"]["error"]["code"] for one in failed] == ["insufficient_quota"] * 3


def test_what_passes_by_waiting_is_waited_for_and_what_does_not_is_not(
    workspace: Workspace, keys: Keys, echo: Echoes
) -> None:
    """A budget that running requests hold for a moment, and a request that is larger than a minute's tokens."""
    secret = keys.create("app", ["ask"])[1]
    with guarded(workspace, keys, echo().port) as serving:
        held = json.dumps({"error": {"message": "held", "code": "insufficient_quota"}}).encode()
        large = json.dumps({"error": {"message": "large", "type": "tokens", "code": "rate_limit_exceeded"}}).encode()
        refused: list[bytes] = []

        def refuse(request: Any) -> tuple[int, bytes, bytes] | None:
            if request.headers.get(b"pressroom-on-behalf") != b"app":
                return None
            if b"say 1" in request.body:
                return (429, b"", large)
            if len(refused) < 3:
                refused.append(request.body)
                return (429, b"retry-after: 1\r\n", held)
            return None

        serving.refusing = refuse
        client = serving.client(secret)
        batch = ended(client, start(client, jsonl(line(n) for n in range(4))).id)
        assert batch.request_counts.model_dump() == {"total": 4, "completed": 3, "failed": 1} and len(refused) == 3
        (failed,) = records(client.files.content(batch.error_file_id).read())
        assert failed["custom_id"] == "r1" and failed["response"]["body"]["error"]["message"] == "large"


def test_a_database_of_before_keys_belongs_to_nobody(tmp_path: Path) -> None:
    """Tables as the first step made them, with a file and a batch in them."""
    (tmp_path / "pressroom.toml").write_text("")
    with Workspace.open(tmp_path, environ={}) as workspace:
        files = FileStore(workspace)
        writer = files.writer()
        writer.write(b"{}")
        file = writer.commit("batch", "a", expires_s=None)
        batch = Batches(workspace, files).put(
            endpoint=CHAT, input_file=file.id, window="24h", window_s=9.0, metadata=None, results_expire_s=None, now=1.0
        )
    with sqlite3.connect(tmp_path / ".pressroom" / "pressroom.db") as database:
        for table, column in (("batch_files", "owner"), ("batches", "owner"), ("batches", "key_name")):
            database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("DELETE FROM pressroom_migrations WHERE part = 'batches' AND number > 1")
    database.close()
    with Workspace.open(tmp_path, environ={}) as workspace:
        files = FileStore(workspace)
        assert files.get(file.id) == file and Batches(workspace, files).get(batch.id) == batch
        assert files.list(limit=9, owner="key:a") == ([], False)
