"""What the gateway adds to an engine: time, CPU, and how many tokens a second are left.

    python benchmarks/gateway.py [--quick] [--model FILE.gguf]

The gateway runs as it is deployed (routes, validation, metrics) in a process of its own on one core; the engine and the
load generator share another. Each measurement of the gateway has one of the engine alone right before it, and the
figures are medians over these pairs. The echo engine stands for an engine that costs nothing; `tokens_ratio` is taken
on llama.cpp with a real model where one is found: `--model`, else the workspace's first GGUF version.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from _load import generator, run

from pressroom.engines import Endpoint, EngineSpec, create
from pressroom.kernel import PressroomError, Workspace, this_machine

_CLIENTS = (1, 16, 64)
_TOKENS = 64
# The pace of the streamed echo: 500 tokens a second and client, faster than any engine on this class of machine.
_PACE_S = 0.002
_TARGETS = {"added_p50_ms": "<= 0.15", "added_ttft_ms": "<= 0.3", "tokens_ratio": ">= 0.97"}


def serve(endpoint_port: int, model: str) -> None:
    """The gateway's process: prints its URL, ends when stdin closes."""
    import uvloop

    from pressroom.gateway import Gateway, Route, RouteTable
    from pressroom.gateway import serve as serve_gateway
    from pressroom.kernel import GatewaySettings

    routes = RouteTable()
    routes.set(Route(model=model, host="127.0.0.1", port=endpoint_port, digest="sha256-0", engine="benchmark"))

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
        await serve_gateway(
            Gateway(GatewaySettings(), routes), port=0, started=lambda url: print(url, flush=True), stop=stop
        )

    uvloop.run(main())


@contextlib.contextmanager
def gateway_for(port: int, model: str, cores: set[int]) -> Iterator[tuple[int, psutil.Process]]:
    """A running gateway in front of the engine at `port`: its own port, and its process."""
    command = [sys.executable, __file__, "--serve", str(port), model]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            url = process.stdout.readline().strip()
            pin(process.pid, cores)
            yield int(url.rpartition(":")[2]), psutil.Process(process.pid)
        finally:
            process.stdin.close()
            process.wait()


@contextlib.contextmanager
def engine_of(kind: str, spec: EngineSpec, cores: set[int]) -> Iterator[Endpoint]:
    engine = create(kind, spec)
    endpoint = engine.start()
    try:
        pin(endpoint.pid, cores)
        yield endpoint
    finally:
        engine.stop()


def pin(pid: int, cores: set[int]) -> None:
    """Keep every thread of the process on these cores, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        for thread in psutil.Process(pid).threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)


def request_for(model: str, *, stream: bool, **more: Any) -> bytes:
    message = "What is the difference between a printer's devil and a compositor? Answer in a few sentences."
    body = {"model": model, "messages": [{"role": "user", "content": message}], "temperature": 0, **more}
    payload = json.dumps({**body, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nAuthorization: Bearer none\r\n\r\n" + payload


def overhead(*, stream: bool, seconds: float, repeats: int, cores: tuple[set[int], set[int]]) -> dict[int, Any]:
    """Pairs of measurements on the echo for each number of clients."""
    options = {"tokens": _TOKENS, **({"delay_s": _PACE_S} if stream else {})}
    request = request_for("echo", stream=stream)
    # One client's streams are cut to a word: a second then holds many first tokens, not a few whole answers.
    short = request_for("echo", stream=stream, **({"max_tokens": 1} if stream else {}))
    found: dict[int, Any] = {}
    with (
        engine_of("echo", EngineSpec(name="echo", options=options), cores[0]) as endpoint,
        gateway_for(endpoint.port, "echo", cores[1]) as (port, process),
    ):
        for warm in (endpoint.port, port):
            run(warm, request, clients=4, seconds=0.3, cores=cores[0])
        for clients in _CLIENTS:
            pairs = []
            sent = short if clients == 1 else request
            for _ in range(repeats):
                direct = run(endpoint.port, sent, clients=clients, seconds=seconds, cores=cores[0])
                before = cpu_seconds(process)
                through = run(port, sent, clients=clients, seconds=seconds, cores=cores[0])
                through["cpu_s"] = cpu_seconds(process) - before
                if direct["errors"] or through["errors"]:
                    raise SystemExit(f"the run had errors: {direct} {through}")
                pairs.append((direct, through))
            found[clients] = summary(pairs)
            print(f"{'stream' if stream else 'plain'}, {clients} clients: {json.dumps(found[clients])}", flush=True)
    return found


def summary(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Medians over the pairs."""

    def added(name: str) -> float:
        return statistics.median(through[name] - direct[name] for direct, through in pairs)

    def per(name: str) -> float:
        total = sum(through[name] for _, through in pairs)
        return sum(through["cpu_s"] for _, through in pairs) * 1e6 / total if total else 0.0

    values = {
        "direct_p50_ms": statistics.median(direct["p50_ms"] for direct, _ in pairs),
        "added_p50_ms": added("p50_ms"),
        "added_p99_ms": added("p99_ms"),
        "added_ttft_ms": added("ttft_p50_ms"),
        "direct_per_second": statistics.median(direct["requests"] / direct["seconds"] for direct, _ in pairs),
        "per_second": statistics.median(through["requests"] / through["seconds"] for _, through in pairs),
        "cpu_us_per_request": per("requests"),
        "cpu_us_per_chunk": per("frames"),
    }
    return {name: round(value, 4) for name, value in values.items()}


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def tokens_ratio(
    model: Path | None, *, seconds: float, repeats: int, clients: int, cores: tuple[set[int], set[int]]
) -> dict[str, Any]:
    """Tokens a second through the gateway over those of the engine alone, streamed."""
    if model is not None:
        kind, where = "llamacpp", set[int]()
        # One core is left to the gateway and the load generator. Threads of llama.cpp wait for each other spinning:
        # with no core left, one that is put off stops all, and what is measured is the scheduler.
        threads = max(1, this_machine().cores - 1)
        spec = EngineSpec(name="bench", model=model, slots=clients, context=1024, threads=threads)
        request = request_for("bench", stream=True, max_tokens=_TOKENS, ignore_eos=True)
    else:
        kind, where = "echo", cores[0]
        spec = EngineSpec(name="bench", options={"tokens": _TOKENS, "delay_s": _PACE_S})
        request = request_for("bench", stream=True)
    ratios = []
    speeds: dict[str, list[float]] = {"direct": [], "gateway": []}
    with (
        engine_of(kind, spec, where) as endpoint,
        gateway_for(endpoint.port, "bench", where) as (port, _),
    ):
        run(endpoint.port, request, clients=clients, seconds=10, requests=clients)
        for number in range(repeats):
            pair = {}
            # Each of the two goes first in turn: what grows warm or hot does not favour one.
            order = [("direct", endpoint.port), ("gateway", port)]
            for name, to in order if number % 2 else reversed(order):
                result = run(to, request, clients=clients, seconds=seconds)
                pair[name] = result["frames"] / result["seconds"]
                speeds[name].append(pair[name])
            if not pair["direct"]:
                raise SystemExit("the engine gave no token: this machine is too busy to measure on")
            ratios.append(pair["gateway"] / pair["direct"])
    return {
        "engine": "llama.cpp" if model is not None else "echo",
        "model": model.name if model is not None else "",
        "engine_threads": spec.threads,
        "clients": clients,
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "direct_tokens_per_second": round(statistics.median(speeds["direct"]), 1),
        "tokens_per_second": round(statistics.median(speeds["gateway"]), 1),
    }


def find_model() -> Path | None:
    """A GGUF version of the workspace around the current directory, if there is one."""
    from pressroom.registry import Registry

    try:
        with Workspace.open() as workspace:
            registry = Registry(workspace)
            for version in registry.list():
                if version.metadata.get("format") == "gguf":
                    return registry.materialise(version)
    except PressroomError as error:
        print(f"no model of the workspace is used: {error}", file=sys.stderr)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds on 2 cores")
    parser.add_argument("--model", type=Path, help="GGUF file for tokens_ratio")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(int(arguments.serve[0]), arguments.serve[1])
        return
    began = time.perf_counter()
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    cores = ({usable[0]}, {usable[1]}) if len(usable) > 1 else (set[int](), set[int]())
    seconds, repeats = (0.5, 3) if arguments.quick else (1.5, 7)
    plain = overhead(stream=False, seconds=seconds, repeats=repeats, cores=cores)
    stream = overhead(stream=True, seconds=seconds, repeats=repeats, cores=cores)
    model = arguments.model or find_model()
    tokens = tokens_ratio(
        model, seconds=2.0 if arguments.quick else 10.0, repeats=3 if arguments.quick else 7, clients=4, cores=cores
    )
    print(f"tokens: {json.dumps(tokens)}", flush=True)
    result = {
        "added_p50_ms": plain[1]["added_p50_ms"],
        "added_p99_ms": plain[1]["added_p99_ms"],
        "added_ttft_ms": stream[1]["added_ttft_ms"],
        "cpu_us_per_request": plain[16]["cpu_us_per_request"],
        "cpu_us_per_chunk": stream[16]["cpu_us_per_chunk"],
        "tokens_ratio": tokens["ratio"],
        "tokens_ratio_engine": tokens["engine"],
        "targets": _TARGETS,
        "tokens": tokens,
        "plain": plain,
        "stream": stream,
        "pinned": bool(cores[0]),
        "load_generator": generator()[1],
        "load_average": os.getloadavg()[0],
        "machine": str(this_machine()),
        "date": datetime.date.today().isoformat(),
        "quick": arguments.quick,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
