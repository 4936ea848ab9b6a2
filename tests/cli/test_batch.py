"""`press batch`: from a file to a file, again and again."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import uvloop

from pressroom.cli._app import COMMANDS, run
from pressroom.deploy import Deployments, Phase, Server, wait_until
from pressroom.engines.backends.echo import EchoServer
from pressroom.gateway import Route
from pressroom.gateway.batches import FileJob, Options, jobs
from pressroom.kernel import GatewaySettings, Workspace
from pressroom.testing.gateway import GatewayThread

COMMAND = ("batch", "Answer every line of a file.")
PROGRAM = f"""
import sys
from pressroom.cli._app import COMMANDS, run
COMMANDS['batch'] = {COMMAND!r}
sys.exit(run(sys.argv[1:]))
"""


class Engine:
    """An echo engine in an event loop of its own."""

    def __init__(self, **options: Any) -> None:
        self.server = EchoServer("m", options=options)
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)
        self._thread.start()
        assert self._listening.wait(30)

    @property
    def requests(self) -> int:
        return self.server.requests

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        await self.server.listen()
        self._listening.set()
        await self._over.wait()
        self.server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(COMMANDS, "batch", COMMAND)
    with Workspace.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def serve(workspace: Workspace) -> Iterator[Callable[..., Engine]]:
    """Starts an engine with a gateway in front, as the server of the workspace, with the deployment `m`."""
    with ExitStack() as held:

        def make(**options: Any) -> Engine:
            engine = Engine(**options)
            held.callback(engine.close)
            route = Route(model="m", host="127.0.0.1", port=engine.server.port, ref="m:1", digest="", engine="echo")
            gateway = held.enter_context(GatewayThread(route))
            Deployments(workspace).put("m", ref="m:1", digest="", engine="echo")
            held.enter_context(workspace.lock("server", purpose="be the server of a test"))
            info = json.dumps({"pid": os.getpid(), "url": gateway.url})
            (workspace.path("run") / "server.json").write_text(info)
            return engine

        yield make


Serve = Callable[..., Engine]


def write(name: str, lines: list[Any]) -> None:
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def answers(name: str) -> dict[str, Any]:
    """The answers by id; every id is there once."""
    found = [json.loads(line) for line in Path(name).read_text().splitlines()]
    by_id = {one["custom_id"]: one for one in found}
    assert len(by_id) == len(found)
    return by_id


def text(answer: Any) -> str:
    return str(answer["response"]["body"]["choices"][0]["message"]["content"])


def press(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = run(["batch", *arguments, "--deployment", "m", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_kind_of_line(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve()
    lines = [
        "plain words",
        {"prompt": "a prompt", "id": "mine"},
        {"messages": [{"role": "user", "content": "in messages"}], "custom_id": "theirs"},
        {"prompt": "cut off here", "max_tokens": 2, "id": 7},
        {
            "custom_id": "open",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "gpt-4o", "prompt": "as OpenAI has it"},
        },
    ]
    write("in.jsonl", lines)
    code, summary = press("in.jsonl", capsys=capsys)
    assert code == 0 and (summary["total"], summary["completed"], summary["failed"]) == (5, 5, 0)
    assert summary["out"] == "in.jsonl.out.jsonl"
    found = answers("in.jsonl.out.jsonl")
    assert {name: text(found[name]) for name in ("line-1", "mine", "theirs", "7")} == {
        "line-1": "plain words",
        "mine": "a prompt",
        "theirs": "in messages",
        "7": "cut off",
    }
    body = found["open"]["response"]["body"]
    assert body["choices"][0]["text"] == "as OpenAI has it" and body["model"] == "m"
    assert summary["usage"]["completion_tokens"] == 2 + 2 + 2 + 2 + 4


def test_options_are_for_lines_that_say_nothing(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve()
    lines = [{"prompt": "a b c d", **said} for said in ({}, {"max_tokens": 3}, {"max_completion_tokens": 2})]
    write("in.jsonl", lines)
    press("in.jsonl", "--max-tokens", "1", "--out", "o", capsys=capsys)
    assert [text(answers("o")[name]) for name in ("line-1", "line-2", "line-3")] == ["a", "a b c", "a b"]
    write("in.jsonl", lines[:2])
    press("in.jsonl", "--endpoint", "completions", "--out", "c", capsys=capsys)
    assert answers("c")["line-1"]["response"]["body"]["object"] == "text_completion"
    press("in.jsonl", "--system", "be brief", "--out", "s", capsys=capsys)
    assert answers("s")["line-1"]["response"]["body"]["usage"]["prompt_tokens"] == 6


def test_again_goes_on(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    engine = serve()
    write("in.jsonl", [{"prompt": f"say {n}"} for n in range(20)])
    assert press("in.jsonl", capsys=capsys)[1]["completed"] == 20
    before = Path("in.jsonl.out.jsonl").read_bytes()
    code, summary = press("in.jsonl", capsys=capsys)
    assert (code, summary["before"], summary["completed"], engine.requests) == (0, 20, 0, 20)
    write("in.jsonl", [{"prompt": f"say {n}"} for n in range(25)])  # five more
    Path("in.jsonl.out.jsonl").write_bytes(before[: len(before) // 2])  # and half of the answers torn away
    code, summary = press("in.jsonl", capsys=capsys)
    assert code == 0 and summary["before"] + summary["completed"] == 25
    assert {name: text(one) for name, one in answers("in.jsonl.out.jsonl").items()} == {
        f"line-{n + 1}": f"say {n}" for n in range(25)
    }


def test_a_line_that_changed_is_refused_or_redone(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    engine = serve()
    write("in.jsonl", [{"prompt": f"say {n}", "id": f"r{n}"} for n in range(5)])
    press("in.jsonl", capsys=capsys)
    before = Path("in.jsonl.out.jsonl").read_bytes()
    # Another order is no change; another prompt is.
    write("in.jsonl", [{"prompt": "other" if n == 3 else f"say {n}", "id": f"r{n}"} for n in reversed(range(5))])
    code, error = press("in.jsonl", capsys=capsys)
    assert code == 1 and "1 of the requests" in error["error"]["message"] and "request 2" in error["error"]["message"]
    assert "--redo-changed" in error["error"]["hint"] and Path("in.jsonl.out.jsonl").read_bytes() == before
    code, summary = press("in.jsonl", "--redo-changed", capsys=capsys)
    assert (code, summary["completed"], engine.requests) == (0, 1, 6)
    found = answers("in.jsonl.out.jsonl")
    assert text(found["r3"]) == "other" and text(found["r2"]) == "say 2" and len(found) == 5


def test_failures_are_told_and_tried_again_when_asked(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    engine = serve()
    write("in.jsonl", [{"prompt": f"say {n}", **({"temperature": 9} if n % 2 else {})} for n in range(6)])
    code, summary = press("in.jsonl", capsys=capsys)
    assert code == 1 and (summary["completed"], summary["failed"]) == (3, 3)
    assert summary["reasons"][0]["count"] == 3 and "temperature" in summary["reasons"][0]["message"]
    assert run(["batch", "in.jsonl", "--deployment", "m"]) == 1  # also when there is nothing left to send
    said = capsys.readouterr()
    assert "3 failed" in said.err and "--retry-failed" in said.err and engine.requests == 3
    code, summary = press("in.jsonl", "--retry-failed", capsys=capsys)
    assert code == 1 and (summary["before"], summary["failed_now"]) == (3, 3)
    assert len(answers("in.jsonl.out.jsonl")) == 6  # the new failures in place of the old ones


def test_embeddings_keep_their_fields(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """The echo has no embeddings: what matters is where the request went, and that it is a failure that is told."""
    serve()
    write("in.jsonl", [{"input": "words"}])
    code, summary = press("in.jsonl", "--max-tokens", "3", capsys=capsys)
    assert code == 1 and summary["failed"] == 1
    (answer,) = answers("in.jsonl.out.jsonl").values()
    assert answer["response"]["status_code"] in (400, 404)


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ([b"{"], "line 1 cannot be read: it is not JSON"),
        ([b'"ok"', b"7"], "line 2 cannot be read: it is neither"),
        ([b"{}"], "prompt, messages and input"),
        ([b'{"prompt": "a", "input": "b"}'], "prompt, messages and input"),
        ([b'{"prompt": "a", "stream": true}'], "not streamed"),
        ([b'{"prompt": ["a"]}'], "not a string"),
        ([b'{"id": "", "prompt": "a"}'], "its id"),
        ([b'{"id": {}, "prompt": "a"}'], "its id"),
        ([b'{"url": "/v1/files", "body": {}}'], "its url"),
        ([b'{"url": "/v1/completions", "body": []}'], "its body"),
        ([b'{"url": "/v1/completions", "body": {}, "method": "GET"}'], "its method"),
        ([b'{"url": "/v1/completions", "body": {}, "more": 1}'], "'more'"),
        ([b'{"prompt": "a", "x": ' + b"[" * 500 + b"]" * 500 + b"}"], "cannot be written"),
        ([b'{"id": "a", "prompt": "1"}', b'"b"', b'{"id": "a", "prompt": "2"}'], "requests 1 and 3"),
        ([b"", b"  "], "no request"),
    ],
)
def test_lines_that_cannot_be_read(
    serve: Serve, capsys: pytest.CaptureFixture[str], lines: list[bytes], part: str
) -> None:
    engine = serve()
    Path("in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    code, error = press("in.jsonl", capsys=capsys)
    assert code == 1 and part in error["error"]["message"] and error["error"]["hint"]
    assert not Path("in.jsonl.out.jsonl").exists() and engine.requests == 0


def test_messages_do_not_fit_another_endpoint(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve()
    write("in.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    code, error = press("in.jsonl", "--endpoint", "completions", capsys=capsys)
    assert code == 1 and "--endpoint completions" in error["error"]["message"]


def test_wrong_use(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve()
    assert run(["batch", "nothing.jsonl", "--deployment", "m"]) == 2
    assert run(["batch", ".", "--deployment", "m"]) == 2
    assert run(["batch", "-", "--deployment", "m"]) == 2
    assert "--out" in capsys.readouterr().err
    write("in.jsonl", ["a"])
    assert run(["batch", "in.jsonl"]) == 2
    assert run(["batch", "in.jsonl", "--deployment", "nobody"]) == 1
    assert "nobody" in capsys.readouterr().err
    Path("notes.txt").write_text("my notes\n")
    assert run(["batch", "in.jsonl", "--deployment", "m", "--out", "notes.txt"]) == 1
    assert run(["batch", "in.jsonl", "--deployment", "m", "--out", "in.jsonl"]) == 1
    assert run(["batch", "in.jsonl", "--deployment", "m", "--out", "/dev/null"]) == 1
    assert run(["batch", "in.jsonl", "--deployment", "m", "--out", "no/such/folder"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert Path("notes.txt").read_text() == "my notes\n"


def test_without_a_server(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    Deployments(workspace).put("m", ref="m:1", digest="", engine="echo")
    write("in.jsonl", ["a"])
    assert run(["batch", "in.jsonl", "--deployment", "m"]) == 1
    assert "no server runs" in capsys.readouterr().err


def test_two_at_one_output(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve()
    write("in.jsonl", ["a"])
    with Path("in.jsonl.out.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, error = press("in.jsonl", capsys=capsys)
    assert code == 1 and error["error"]["code"] == "locked"
    assert press("in.jsonl", capsys=capsys)[0] == 0


def test_the_lock_is_held_also_over_a_rewrite(serve: Serve, workspace: Workspace) -> None:
    engine = serve(first_delay_s=0.02)
    write("in.jsonl", [{"prompt": f"say {n}"} for n in range(40)])
    url = json.loads((workspace.dir / "run" / "server.json").read_text())["url"]

    def job(deployment: str, **more: Any) -> FileJob:
        return FileJob(Path("in.jsonl"), Path("o"), Options(url=url, deployment=deployment, **more), workspace)

    assert job("nobody").run().failed == 40
    threads = [threading.Thread(target=lambda: results.append(attempt())) for _ in range(2)]
    results: list[Any] = []

    def attempt() -> Any:
        try:
            return job("m", redo_changed=True).run().counts.completed
        except Exception as error:  # noqa: BLE001  looked at below
            return type(error).__name__

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One rewrites and answers; the other is refused, or comes when all is done.
    assert sorted(map(str, results)) in (["40", "LockedError"], ["0", "40"])
    assert len(answers("o")) == 40 and engine.requests == 40


def test_an_output_that_somebody_broke_is_left_alone(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve()
    write("in.jsonl", ["a", "b", "c"])
    press("in.jsonl", capsys=capsys)
    lines = Path("in.jsonl.out.jsonl").read_bytes().splitlines(keepends=True)
    broken = lines[0] + lines[1][:-9] + b"\n" + lines[2]
    Path("in.jsonl.out.jsonl").write_bytes(broken)
    code, error = press("in.jsonl", capsys=capsys)
    assert code == 1 and "line 2" in error["error"]["message"]
    assert Path("in.jsonl.out.jsonl").read_bytes() == broken


def test_standard_input(serve: Serve, workspace: Workspace) -> None:
    serve()
    command = [sys.executable, "-c", PROGRAM, "batch", "-", "--deployment", "m", "--out", "o.jsonl", "--json"]
    lines = "".join(f'"say {n}"\n' for n in range(10))
    for before in (0, 10):
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, cwd=workspace.root)
        assert json.loads(done.stdout)["before"] == before
    assert len(answers("o.jsonl")) == 10
    assert not list(workspace.path("tmp").iterdir())


def test_progress_in_a_log(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve()
    write("in.jsonl", ["a b", "c d"])
    assert run(["batch", "in.jsonl", "--deployment", "m"]) == 0
    said = capsys.readouterr()
    assert "in.jsonl  100%  2 requests" in said.err
    assert "2 of 2 requests answered" in said.out and "4 written" in said.out


def test_long_inputs_say_that_they_are_read(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    monkeypatch.setattr(jobs, "_TOLD_LINES", 2)
    write("in.jsonl", [f"say {n}" for n in range(5)])
    assert run(["batch", "in.jsonl", "--deployment", "m"]) == 0
    assert "reading in.jsonl  100%" in capsys.readouterr().err


def until_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_what_runs(serve: Serve, capsys: pytest.CaptureFixture[str], sent: signal.Signals) -> None:
    engine = serve(first_delay_s=0.05)
    write("in.jsonl", [{"prompt": f"say {n}"} for n in range(500)])
    command = [sys.executable, "-c", PROGRAM, "batch", "in.jsonl", "--deployment", "m", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until_lines(Path("in.jsonl.out.jsonl"), 20, process)
        process.send_signal(sent)
        out, err = process.communicate()
    assert process.returncode == 130 and not err
    summary = json.loads(out)
    kept = len(answers("in.jsonl.out.jsonl"))
    # Nothing that was asked is lost: the engine was asked as often as there are answers.
    assert summary["completed"] == kept == engine.requests and summary["left"] == 500 - kept > 0
    code, summary = press("in.jsonl", "--concurrency", "100", capsys=capsys)
    assert code == 0 and summary["before"] == kept and len(answers("in.jsonl.out.jsonl")) == 500


def test_a_real_server_serves_batches_both_ways(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of it made for a test: the server's process, an engine's process, the official client."""
    (workspace.root / "pressroom.toml").write_text("[gateway]\nport = 0\ngrpc_port = -1\ndrain_s = 1.0\n")
    write("in.jsonl", [{"prompt": f"say {n}"} for n in range(10)])
    with Workspace.open(workspace.root) as served, Server(served) as server:
        deployments = Deployments(served)
        wish = deployments.put("m", ref="m:1", digest="", engine="echo")
        wait_until(deployments, wish, Phase.READY, timeout_s=60)
        code, summary = press("in.jsonl", capsys=capsys)
        assert code == 0 and summary["completed"] == 10
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        body = {"model": "m", "messages": [{"role": "user", "content": "from the client"}]}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        deadline = time.monotonic() + 60
        while (batch := client.batches.retrieve(batch.id)).status != "completed":
            assert time.monotonic() < deadline, batch
            time.sleep(0.02)
        assert batch.output_file_id
        assert "from the client" in client.files.content(batch.output_file_id).text


@pytest.mark.slow
def test_killed_again_and_again(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    engine = serve(first_delay_s=0.02)
    write("in.jsonl", [{"prompt": f"say {n}"} for n in range(400)])
    out = Path("in.jsonl.out.jsonl")
    for count in (30, 130, 250):
        command = [sys.executable, "-c", PROGRAM, "batch", "in.jsonl", "--deployment", "m", "--json"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            until_lines(out, count, process)
            process.kill()
        with out.open("ab") as torn:
            torn.write(b'{"id":"batch_req_')
    code, summary = press("in.jsonl", capsys=capsys)
    assert code == 0 and summary["before"] >= 250 and len(answers(str(out))) == 400
    assert engine.requests <= 400 + 3 * (8 + 4 * 8)


def test_nothing_is_answered_for_long(serve: Serve, workspace: Workspace) -> None:
    """The run is given up, and no line is: the gateway is gone, or says for ever that the model is not ready."""
    write("in.jsonl", ["a", "b"])
    with pytest.raises(jobs.BatchError, match="the gateway cannot be reached"):
        FileJob(
            Path("in.jsonl"), Path("o"), Options(url="http://127.0.0.1:9", deployment="m", patience_s=0.5), workspace
        ).run()
    route = Route(model="m", host="127.0.0.1", port=9, ref="m:1", digest="", engine="echo", ready=False)
    with GatewayThread(route, settings=GatewaySettings(wait_s=0.0)) as gateway:
        options = Options(url=gateway.url, deployment="m", patience_s=0.5)
        with pytest.raises(jobs.BatchError, match="not ready"):
            FileJob(Path("in.jsonl"), Path("o"), options, workspace).run()
    assert Path("o").read_bytes() == b""


def test_an_input_that_changes_while_it_is_read(
    serve: Serve, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    url = json.loads((workspace.dir / "run" / "server.json").read_text())["url"]
    write("in.jsonl", ["a", "b"])
    job = FileJob(
        Path("in.jsonl"),
        Path("o"),
        Options(url=url, deployment="m"),
        workspace,
        began=lambda: write("in.jsonl", ["a", "c"]),
    )
    with pytest.raises(jobs.BatchError, match="changed while it was read"):
        job.run()
    assert answers("o").keys() <= {"line-1"}


def test_help_loads_nothing_heavy() -> None:
    program = f"""
import sys
from pressroom.cli._app import COMMANDS, run
COMMANDS['batch'] = {COMMAND!r}
assert run(['batch', '--help']) == 0
heavy = {{'numpy', 'asyncio', 'sqlalchemy', 'orjson', 'httptools'}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
