"""What the gateway adds to an engine, at 1, 16 and 64 clients, plain and streamed, and how many tokens are left."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from _gateway_running import (
    FEATURES,
    Cores,
    Deployed,
    cpu_seconds,
    deploy_routed,
    every_feature,
    request_for,
    workspace,
)
from _load import run

from pressroom.kernel import this_machine

_CLIENTS = (1, 16, 64)
_TOKENS = 64
# The pace of the streamed echo: 500 tokens a second and client, faster than any engine on this class of machine.
_PACE_S = 0.002


def deploy_echoes(ours: Deployed) -> dict[bool, tuple[str, int]]:
    """The engines that cost nothing, for plain requests (False) and streamed ones (True): name and port of each."""
    return {
        False: ("echo", deploy_routed(ours, "echo", {"tokens": _TOKENS})),
        True: ("paced", deploy_routed(ours, "paced", {"tokens": _TOKENS, "delay_s": _PACE_S})),
    }


def overhead(
    ours: Deployed, model: str, engine: int, *, stream: bool, seconds: float, repeats: int, cores: Cores
) -> dict[int, Any]:
    """Pairs of measurements on the echo for each number of clients."""
    request = request_for(model, stream=stream)
    # One client's streams are cut to a word: a second then holds many first tokens, not a few whole answers.
    short = request_for(model, stream=stream, **({"max_tokens": 1} if stream else {}))
    process = ours.running().processes
    found: dict[int, Any] = {}
    for warm in (engine, ours.port):
        run(warm, request, clients=4, seconds=0.3, cores=cores.load)
    for clients in _CLIENTS:
        pairs = []
        sent = short if clients == 1 else request
        for _ in range(repeats):
            direct = run(engine, sent, clients=clients, seconds=seconds, cores=cores.load)
            before = cpu_seconds(process)
            through = run(ours.port, sent, clients=clients, seconds=seconds, cores=cores.load)
            through["cpu_s"] = cpu_seconds(process) - before
            if direct["errors"] or through["errors"]:
                raise SystemExit(f"the run had errors: {direct} {through}")
            pairs.append((direct, through))
        found[clients] = summary(pairs)
        print(f"{'stream' if stream else 'plain'}, {clients} clients: {json.dumps(found[clients])}", flush=True)
    return found


def summary(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
    """Medians over the pairs of (direct, through)."""

    def added(name: str) -> float:
        return float(statistics.median(through[name] - direct[name] for direct, through in pairs))

    def per(name: str) -> float:
        total = sum(through[name] for _, through in pairs)
        return float(sum(through["cpu_s"] for _, through in pairs) * 1e6 / total) if total else 0.0

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


def tokens_ratio(model: Path | None, *, seconds: float, repeats: int, clients: int, cores: Cores) -> dict[str, Any]:
    """Tokens a second through the gateway over those of the engine alone, streamed; without a model, of the echo."""
    # One core is left to the gateway and the load generator. Threads of llama.cpp wait for each other spinning: with no
    # core left, one that is put off stops all, and what is measured is the scheduler.
    threads = max(1, this_machine().cores - 1) if model is not None else 0
    pinned = cores.load if model is None else set[int]()
    ratios = []
    speeds: dict[str, list[float]] = {"direct": [], "gateway": []}
    with workspace(server_cores=pinned, engine_cores=pinned, settings=FEATURES) as ours:
        every_feature(ours)
        if model is not None:
            ours.press("pull", str(model.resolve()), "--as", "bench")
            sizes = ("--slots", str(clients), "--context", "1024", "--threads", str(threads))
            engine = ours.deploy("bench", "bench", "--engine", "llamacpp", *sizes)
            request = request_for("bench", stream=True, max_tokens=_TOKENS, ignore_eos=True)
        else:
            paced = ("--option", f"tokens={_TOKENS}", "--option", f"delay_s={_PACE_S}")
            engine = ours.deploy("bench:1", "bench", "--engine", "echo", *paced)
            request = request_for("bench", stream=True)
        run(engine, request, clients=clients, seconds=10, requests=clients)
        for number in range(repeats):
            pair = {}
            # Each of the two goes first in turn: what grows warm or hot does not favour one.
            order = [("direct", engine), ("gateway", ours.port)]
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
        "engine_threads": threads,
        "clients": clients,
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "direct_tokens_per_second": round(statistics.median(speeds["direct"]), 1),
        "tokens_per_second": round(statistics.median(speeds["gateway"]), 1),
    }
