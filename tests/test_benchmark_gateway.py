"""What `benchmarks/gateway.py` and `benchmarks/engines.py` are made of: load generators, peers, sums, pictures."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    yield
    for name in [name for name in sys.modules if name.startswith(("_gateway", "_engines", "_load"))]:
        del sys.modules[name]
    for name in ("gateway", "engines"):
        sys.modules.pop(name, None)


@pytest.fixture(params=["C", "Python"])
def both_generators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test with it runs with the compiled generators, and with those that stand in for them."""
    import _load

    if request.param == "Python":
        monkeypatch.setattr(_load.shutil, "which", lambda name: None)
    elif _load.generator()[1].startswith("Python"):
        pytest.skip("there is no C compiler here")
    return str(request.param)


class _Loop:
    """An event loop in a thread, for servers that a test's own thread asks."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def loop() -> Iterator[_Loop]:
    made = _Loop()
    yield made
    made.close()


def test_the_http_generators_count_requests_events_and_errors(both_generators: str, loop: _Loop) -> None:
    from _gateway_running import request_for
    from _load import run

    from pressroom.engines.backends.echo import EchoServer

    echo = EchoServer("echo", options={"tokens": 5})
    port = loop.run(echo.listen())
    plain = run(port, request_for("echo", stream=False), clients=3, seconds=20, requests=230)
    # A role, five words and an end: the mark of the end of a stream is no event.
    stream = run(port, request_for("echo", stream=True), clients=2, seconds=20, requests=10)
    wrong = run(
        port,
        b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        clients=1,
        seconds=20,
        requests=4,
    )
    loop.loop.call_soon_threadsafe(echo.close)
    assert (plain["requests"], plain["errors"], plain["frames"]) == (230, 0, 0)
    assert (stream["requests"], stream["errors"], stream["frames"]) == (10, 0, 70)
    assert (wrong["requests"], wrong["errors"]) == (4, 4)
    assert 0 < stream["ttft_p50_ms"] <= stream["p50_ms"] <= stream["p99_ms"]


def test_the_grpc_generators_count_calls_and_errors(both_generators: str, loop: _Loop) -> None:
    import grpc
    import grpc.aio
    from _load import run

    async def answer(request: bytes, context: Any) -> bytes:
        if request == b"bad":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")
        return b"said: " + request

    async def serve() -> tuple[Any, int]:
        server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler(
            "some.Service", {"Say": grpc.unary_unary_rpc_method_handler(answer)}
        )
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = loop.run(serve())
    try:
        good = run(port, b"hello", clients=3, seconds=20, requests=40, grpc="/some.Service/Say")
        # More than the window of a connection: it goes on as the server gives more.
        large = run(port, b"x" * 9000, clients=1, seconds=20, requests=20, grpc="/some.Service/Say")
        bad = run(port, b"bad", clients=1, seconds=20, requests=5, grpc="/some.Service/Say")
    finally:
        loop.run(server.stop(0))
    assert (good["requests"], good["errors"]) == (40, 0)
    assert (large["requests"], large["errors"]) == (20, 0)
    assert (bad["requests"], bad["errors"]) == (5, 5)
    assert good["p50_ms"] > 0


def test_the_v2_message_is_what_the_protocol_says() -> None:
    from _gateway_v2 import message, rest

    from pressroom.gateway.grpc import inference_pb2

    text = "ä printer's devil " * 20  # longer than one byte counts
    asked = inference_pb2.ModelInferRequest.FromString(message("mirror", text))
    (tensor,) = asked.inputs
    assert (asked.model_name, tensor.name, tensor.datatype, list(tensor.shape)) == (
        "mirror",
        "text_input",
        "BYTES",
        [1],
    )
    assert list(tensor.contents.bytes_contents) == [text.encode()]
    head, _, body = rest("mirror", text).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert json.loads(body)["inputs"][0]["data"] == [text]


def test_rates_are_medians_of_each_rounds_ratio() -> None:
    from _gateway_rounds import rates

    def side(requests: int, seconds: float, cpu_s: float) -> dict[str, Any]:
        return {"requests": requests, "seconds": seconds, "cpu_s": cpu_s, "p50_ms": seconds, "p99_ms": 9.0}

    pairs = [
        (side(1000, 1.0, 0.5), side(20, 2.0, 1.0)),  # 100 times
        (side(3000, 1.0, 0.9), side(60, 2.0, 2.0)),  # 100 times
        (side(2000, 2.0, 0.6), side(10, 1.0, 1.0)),  # 100 times
        (side(9000, 1.0, 1.0), side(10, 1.0, 1.0)),  # 900 times: a neighbour was busy
    ]
    found = rates(pairs)
    assert found["ratio"] == 100
    assert found["ratios"] == [100, 100, 100, 900]
    assert found["ours_per_second"] == 2000
    assert found["ours_cpu_us"] == 200  # 3 s for 15,000
    assert found["peer_cpu_us"] == 50_000
    assert found["cpu_ratio"] == 250
    assert (found["ours_busy"], found["peer_busy"]) == (0.6, round(5 / 6, 3))


def test_latencies_are_what_is_added_to_the_engine_alone() -> None:
    from _gateway_rounds import latencies

    def one(p50: float, p99: float, first: float) -> dict[str, Any]:
        return {"p50_ms": p50, "p99_ms": p99, "ttft_p50_ms": first}

    whole = {("whole", "engine"): one(1, 2, 0), ("whole", "ours"): one(1.1, 2.4, 0), ("whole", "peer"): one(5, 9, 0)}
    stream = {("stream", "engine"): one(0, 0, 1), ("stream", "ours"): one(0, 0, 1.25), ("stream", "peer"): one(0, 0, 4)}
    assert latencies([whole | stream]) == {
        "ours_p50_ms": 1.1,
        "ours_added_p50_ms": 0.1,
        "ours_added_p99_ms": 0.4,
        "ours_added_ttft_ms": 0.25,
        "peer_p50_ms": 5,
        "peer_added_p50_ms": 4,
        "peer_added_p99_ms": 7,
        "peer_added_ttft_ms": 3,
    }
    alone = {key: value for key, value in whole.items() if key[1] != "engine"}
    assert latencies([alone]) == {"ours_p50_ms": 1.1, "peer_p50_ms": 5}


def test_the_summary_is_of_medians_over_pairs() -> None:
    from _gateway_overhead import summary

    def run(p50: float, requests: int, **more: float) -> dict[str, Any]:
        return {
            "p50_ms": p50,
            "p99_ms": 2 * p50,
            "ttft_p50_ms": p50,
            "requests": requests,
            "seconds": 2.0,
            "frames": 0,
            **more,
        }

    pairs = [(run(1.0, 100), run(1.0 + more, 50, cpu_s=0.001)) for more in (0.1, 0.5, 0.2)]
    found = summary(pairs)
    assert (found["added_p50_ms"], found["added_p99_ms"]) == (0.2, 0.4)
    assert (found["direct_per_second"], found["per_second"]) == (50, 25)
    assert (found["cpu_us_per_request"], found["cpu_us_per_chunk"]) == (20, 0)


# A gateway that answers everything with the same, until it is told to fail.
_FAKE = """
import http.server, os, sys
if "fail" in sys.argv:
    print("no such", "setting", file=sys.stderr)
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.do_POST()
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b'{"said": "' + os.environ["SAID"].encode() + b'"}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def fake_peer(directory: Path, *arguments: str, said: str = "What is the difference between a printer's devil") -> Any:
    from _gateway_peers import Launch, Peer, Way

    def launch(place: Any) -> Any:
        program = place.write("fake.py", _FAKE)
        return Launch(command=[sys.executable, program, str(place.port), *arguments], environ={"SAID": said})

    peer = Peer(
        name="fake", environment="fake", packages=("fake==1",), health="/", ways=(Way(said="as is", launch=launch),)
    )
    (directory / "fake").mkdir()
    (directory / "fake" / "packages.json").write_text(json.dumps([peer.packages, sys.version]))
    return peer


def test_a_peer_that_ends_is_named_with_its_last_words(tmp_path: Path) -> None:
    from _gateway_peers import NotMeasured, environment, place_for, started

    peer = fake_peer(tmp_path, "fail")
    folder = tmp_path / "run"
    folder.mkdir()
    place = place_for(peer, environment(peer, tmp_path, make=False), folder, 1)
    with pytest.raises(NotMeasured, match=r"ended with 3: no such setting"), started(peer, peer.ways[0], place, set()):
        pass


def test_an_environment_that_is_not_there_or_cannot_be_made_is_said(tmp_path: Path) -> None:
    from _gateway_peers import NotMeasured, Peer, environment

    peer = Peer(name="none", environment="none", packages=(str(tmp_path / "nowhere"),), health="/", ways=())
    with pytest.raises(NotMeasured, match="without --quick makes it"):
        environment(peer, tmp_path, make=False)
    with pytest.raises(NotMeasured, match="cannot be made"):
        environment(peer, tmp_path, make=True)
    with pytest.raises(NotMeasured):  # what was half made is not taken for whole
        environment(peer, tmp_path, make=False)


@pytest.mark.parametrize("name", ["litellm", "mlflow", "fastapi", "mlserver"])
def test_each_peer_is_put_in_front_of_the_engine(name: str, tmp_path: Path) -> None:
    from _gateway_peers import Place
    from gateway import peers_of, questions

    for peer in peers_of([name]):
        for way in (*peer.ways, *peer.all_cores):
            place = Place(binaries=Path("/bins"), folder=tmp_path, port=1234, grpc_port=1235, upstream=4321)
            launch = way.launch(place)
            written = " ".join(file.read_text() for file in tmp_path.iterdir())
            told = " ".join([*launch.command, *launch.environ.values(), written])
            assert launch.command[0].startswith("/bins/")
            assert "1234" in told
            assert ("4321" in told) is (name != "mlserver")
            assert way.said
        assert {question.name for question in questions(peer)} == {
            "litellm": {f"rps_vs_{peer.name}"},
            "mlflow": {"rps_vs_mlflow"},
            "fastapi": {"rps_vs_fastapi_httpx"},
            "mlserver": {"v2_rest_vs_mlserver", "v2_grpc_vs_mlserver"},
        }[name]


def test_ours_as_deployed_beside_a_peer(tmp_path: Path) -> None:
    from _gateway_overhead import overhead
    from _gateway_rounds import Bench, Lengths, NotMeasured, compare
    from _gateway_running import Cores, runs, workspace
    from gateway import added, questions

    cores = Cores(set(), set())
    folder = tmp_path / "run"
    folder.mkdir()
    with workspace() as ours:
        engine = ours.deploy("echo:1", "echo", "--engine", "echo", "--option", "tokens=3")
        plain = overhead(ours, "echo", engine, stream=False, seconds=0.1, repeats=1, cores=cores)
        stream = overhead(ours, "echo", engine, stream=True, seconds=0.1, repeats=1, cores=cores)
        peer = fake_peer(tmp_path)
        (question,) = questions(peer)
        lengths = Lengths(rounds=2, ours_s=0.1, peer_s=0.1, warm_s=0.1, try_s=0.0)
        bench = Bench(
            ours=ours.running(),
            engine=engine,
            environments=tmp_path,
            folder=folder,
            cores=cores,
            lengths=lengths,
            make=True,
        )
        # This echo says three words only.
        with pytest.raises(NotMeasured, match="Pressroom does not answer it"):
            compare(peer, question, bench)
        fuller = replace(bench, engine=ours.deploy("echo:1", "echo", "--engine", "echo"))
        found = compare(peer, question, fuller)
        server, engine_process = ours.running().processes[0], psutil.Process(ours.press("ps")["deployments"][0]["pid"])
    assert not runs(server)
    assert not runs(engine_process)
    named = added(plain, stream)
    assert {"added_p50_ms", "added_p99_ms", "added_ttft_ms", "cpu_us_per_request", "cpu_us_per_chunk"} <= named.keys()
    assert plain[16]["per_second"] > 0
    assert stream[16]["cpu_us_per_chunk"] >= 0
    assert found["ratio"] > 0
    assert len(found["ratios"]) == 2
    assert found["set"] == "as is"
    assert {"ours_added_p50_ms", "peer_added_p99_ms", "peer_added_ttft_ms"} <= found["latency"].keys()


def test_ratios_are_of_the_better_engine_and_cycle_by_cycle() -> None:
    from engines import flat, ratios

    def seen(rates: dict[int, list[list[float]]]) -> dict[str, dict[int, list[Any]]]:
        return {"tokens_per_second": dict(rates), "ttft_ms": {}}

    found = {
        "llamacpp": seen({1: [[100.0, 120.0, 110.0], [50.0]], 4: [[150.0]], 16: [[180.0]]}),
        "vllm": seen({1: [[20.0], [20.0]], 4: [[90.0]], 16: [[300.0]]}),
        # The machine was half as fast in the second cycle, and that is no fault of `auto`.
        "auto": seen({1: [[99.0], [47.5]], 4: [[153.0]], 16: [[280.0, 300.0]]}),
    }
    assert ratios(found) == {"ratio_1": 0.925, "ratio_4": 1.02, "ratio_16": 0.967, "ratio_64": None}
    assert ratios({"llamacpp": found["llamacpp"]})["ratio_1"] is None
    assert ratios({"auto": found["auto"]})["ratio_1"] is None
    assert flat(found)["auto"] == {1: [99.0, 47.5], 4: [153.0], 16: [280.0, 300.0]}


def test_the_picture_has_a_line_for_each() -> None:
    from _engines_picture import draw

    lines = {
        "llamacpp": {1: 120.0, 4: 156.0, 64: 199.0},
        "vllm": {1: 22.0, 4: 96.0, 64: 729.0},
        "auto": {1: 119.0, 4: 155.0, 64: 720.0},
    }
    drawn = draw(lines, {"date": "2026-11-21", "machine": "a <machine>", "quick": False})
    root = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    points = [line.attrib["points"].split() for line in root.iter(f"{space}polyline")]
    assert [len(line) for line in points] == [3, 3, 3]
    heights = {name: [float(point.split(",")[1]) for point in line] for name, line in zip(lines, points, strict=True)}
    assert heights["vllm"][2] < heights["auto"][2] < heights["llamacpp"][2]  # more is higher up
    texts = {text.text for text in root.iter(f"{space}text")}
    assert {"1", "4", "64", "729", "llama.cpp, asked directly"} <= texts


def test_what_is_not_given_is_not_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import engines

    monkeypatch.setattr(sys, "argv", ["engines.py"])
    engines.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["not_measured"] == {
        "llamacpp": "needs --gguf",
        "vllm": "needs --safetensors",
        "auto": "needs --gguf and --safetensors",
    }
    assert told["ratio_64"] is None
