"""Ours and a peer in turn: the same question from the same clients, on the same core, in one run."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _gateway_peers import NotMeasured, Peer, Way, environment, place_for, started
from _gateway_running import Cores, Running, cpu_seconds, memory_bytes
from _load import run

_CLIENTS = 16


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked. `check` asks it once at a port and says what is wrong with the answer; `grpc` is the path of the
    call where `request` is its message; `stream` is the same as a stream of one word."""

    name: str
    request: bytes
    check: Callable[[int], str]
    grpc: str = ""
    stream: bytes = b""

    def port(self, side: Running) -> int:
        return side.grpc_port if self.grpc else side.port


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long it takes: `rounds` of `ours_s` and `peer_s` seconds, after `warm_s`; `try_s` for each way of a peer (0:
    the first is taken)."""

    rounds: int
    ours_s: float
    peer_s: float
    warm_s: float
    try_s: float


FULL = Lengths(rounds=5, ours_s=2.0, peer_s=4.0, warm_s=3.0, try_s=3.0)
QUICK = Lengths(rounds=1, ours_s=0.5, peer_s=1.0, warm_s=0.5, try_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all comparisons share. `engine` is the port of the engine behind both, 0 where the peer has none; `make` is
    False for the quick form, which makes no environments and leaves out what only the full one tells."""

    ours: Running
    engine: int
    environments: Path
    folder: Path
    cores: Cores
    lengths: Lengths
    make: bool


def compare(peer: Peer, question: Question, bench: Bench) -> dict[str, Any]:
    """The figures of ours beside a peer's.

    Raises:
        NotMeasured: one of the two does not run, or does not answer as it should.
    """
    binaries = environment(peer, bench.environments, make=bench.make)
    wrong = question.check(question.port(bench.ours))
    if wrong:
        raise NotMeasured(f"Pressroom does not answer it: {wrong}")
    found: dict[str, Any] = {"packages": list(peer.packages)}
    found |= _beside(peer, peer.ways, binaries, question, bench, bench.cores.gateway)
    if peer.all_cores and bench.make:
        found["all_cores"] = _beside(peer, peer.all_cores, binaries, question, bench, set())
    print(f"{question.name} beside {peer.name}: {json.dumps(found)}", flush=True)
    return found


def _beside(
    peer: Peer, ways: tuple[Way, ...], binaries: Path, question: Question, bench: Bench, cores: set[int]
) -> dict[str, Any]:
    way, tried = _best(peer, ways, binaries, question, bench, cores)
    with started(peer, way, place_for(peer, binaries, bench.folder, bench.engine), cores) as running:
        _ready(running, question, bench)
        found = {"set": way.said, "tried": tried, **rates(_rounds(running, question, bench))}
        if cores == bench.cores.gateway and bench.make:
            found["latency"] = _latency(running, question, bench)
        found["peer_memory_mb"] = round(memory_bytes(running.processes) / 1e6)
        found["ours_memory_mb"] = round(memory_bytes(bench.ours.processes) / 1e6)
    return found


def _best(
    peer: Peer, ways: tuple[Way, ...], binaries: Path, question: Question, bench: Bench, cores: set[int]
) -> tuple[Way, dict[str, float | str]]:
    """The way with the most requests a second; and what each gave, or why it gave nothing."""
    if len(ways) == 1 or not bench.lengths.try_s:
        return ways[0], {}
    given: dict[str, float] = {}
    failed: dict[str, str] = {}
    for way in ways:
        try:
            with started(peer, way, place_for(peer, binaries, bench.folder, bench.engine), cores) as running:
                _ready(running, question, bench)
                one = _measure("the peer", running, question, _CLIENTS, bench.lengths.try_s, bench.cores)
                given[way.said] = round(one["requests"] / one["seconds"], 1)
        except NotMeasured as error:
            failed[way.said] = str(error)
            print(f"{peer.name} with {way.said}: {error}", file=sys.stderr, flush=True)
    if not given:
        raise NotMeasured(f"it runs in none of the ways that were tried: {'; '.join(failed.values())}")
    best = max((way for way in ways if way.said in given), key=lambda way: given[way.said])
    return best, {**given, **failed}


def _ready(running: Running, question: Question, bench: Bench) -> None:
    wrong = question.check(question.port(running))
    if wrong:
        raise NotMeasured(f"it does not answer: {wrong}")
    port = question.port(running)
    run(
        port,
        question.request,
        clients=_CLIENTS,
        seconds=bench.lengths.warm_s,
        cores=bench.cores.load,
        grpc=question.grpc,
    )


def _measure(
    whose: str, side: Running, question: Question, clients: int, seconds: float, cores: Cores
) -> dict[str, Any]:
    before = cpu_seconds(side.processes)
    port = question.port(side)
    found = run(port, question.request, clients=clients, seconds=seconds, cores=cores.load, grpc=question.grpc)
    found["cpu_s"] = cpu_seconds(side.processes) - before
    if found["errors"] or not found["requests"]:
        of = f"of {found['requests']} requests of {clients} clients in {found['seconds']:.1f} s"
        raise NotMeasured(f"{whose}: {found['errors']} {of} failed")
    return found


def _rounds(running: Running, question: Question, bench: Bench) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each of the two goes first in turn."""
    pairs = []
    for number in range(bench.lengths.rounds):
        order = [("ours", bench.ours, bench.lengths.ours_s), ("peer", running, bench.lengths.peer_s)]
        pair = {
            whose: _measure(whose, side, question, _CLIENTS, seconds, bench.cores)
            for whose, side, seconds in (order if number % 2 == 0 else reversed(order))
        }
        pairs.append((pair["ours"], pair["peer"]))
    return pairs


def rates(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """What rounds of (ours, peer) come to: `ratio` is the median over the rounds of requests a second. CPU is that of
    the processes of each, without the engine; a side that is `busy` for less than its core waited for the other."""

    def rate(one: dict[str, Any]) -> float:
        return float(one["requests"] / one["seconds"])

    def cpu(side: int) -> float:
        return float(sum(pair[side]["cpu_s"] for pair in pairs) * 1e6 / sum(pair[side]["requests"] for pair in pairs))

    def busy(side: int) -> float:
        return float(sum(pair[side]["cpu_s"] for pair in pairs) / sum(pair[side]["seconds"] for pair in pairs))

    found: dict[str, Any] = {
        "ratio": round(statistics.median(rate(ours) / rate(peer) for ours, peer in pairs), 2),
        "ratios": [round(rate(ours) / rate(peer), 2) for ours, peer in pairs],
        "cpu_ratio": round(cpu(1) / cpu(0), 2) if cpu(0) else None,
    }
    for side, name in enumerate(("ours", "peer")):
        found |= {
            f"{name}_per_second": round(statistics.median(rate(pair[side]) for pair in pairs), 1),
            f"{name}_cpu_us": round(cpu(side), 1),
            f"{name}_busy": round(busy(side), 3),
            f"{name}_p50_ms": round(statistics.median(pair[side]["p50_ms"] for pair in pairs), 3),
            f"{name}_p99_ms": round(statistics.median(pair[side]["p99_ms"] for pair in pairs), 3),
        }
    return found


def _latency(running: Running, question: Question, bench: Bench) -> dict[str, float]:
    sides = {"ours": bench.ours, "peer": running}
    if bench.engine:
        sides["engine"] = Running(processes=[], port=bench.engine, grpc_port=0)
    asked = {"whole": question}
    if question.stream:
        asked["stream"] = replace(question, request=question.stream)

    def one_round() -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (kind, whose): _measure(whose, side, one, 1, bench.lengths.peer_s / 2, bench.cores)
            for kind, one in asked.items()
            for whose, side in sides.items()
        }

    return latencies([one_round() for _ in range(max(1, bench.lengths.rounds - 2))])


def latencies(rounds: list[dict[tuple[str, str], dict[str, Any]]]) -> dict[str, float]:
    """At one client, in ms, medians over the rounds: how long an answer takes, and what each of the two adds to the
    engine alone, where that was asked too. A round has measurements by ("whole" or "stream", whose)."""
    found: dict[str, float] = {}
    for whose in ("ours", "peer"):
        found[f"{whose}_p50_ms"] = statistics.median(one["whole", whose]["p50_ms"] for one in rounds)
        added = {"p50_ms": "whole", "p99_ms": "whole", "ttft_p50_ms": "stream"}
        for name, kind in added.items():
            if (kind, "engine") in rounds[0]:
                through = [one[kind, whose][name] - one[kind, "engine"][name] for one in rounds]
                found[f"{whose}_added_{name.replace('ttft_p50', 'ttft')}"] = statistics.median(through)
    return {name: round(value, 4) for name, value in found.items()}
