"""Whether a server that works hard for a long time stays as it is: memory, descriptors, tasks, and every answer.

    python benchmarks/soak.py [--minutes 20] [--model FILE.gguf] [--svg FILE] [--quick]

Clients come in over every door (chat, completions, several answers, KServe V2 over REST and gRPC; whole and streamed),
send what is malformed or refused, and leave before or within their answers. One engine is ended a minute, in turn by
`kill -9` and by a stop that it does not wake from; one deployment falls asleep and is woken again and again. Every
answer is checked: a stream that has begun may break off with the error its protocol has for that, and nothing else may
go wrong.

Memory (resident, of the server's process) and open descriptors are looked at every second. A line is fitted to the
second half, in which everything has been used before. The soak fails, with exit status 1, where the line grows by more
than 1 MB in ten minutes beyond what its own noise explains (from 10 minutes on: before, what is used for the first time
is still in it), where descriptors grow, where anything is left of the load after its end, or where an answer was wrong.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from _soak_load import BROKEN, Tally, Visitor
from _soak_trend import Trend, draw, trend

from pressroom.deploy import Deployments, Phase, wait_until
from pressroom.kernel import Workspace, this_machine

_MB = 1 << 20
_MAY_GROW_MB = 1.0
_JUDGED_FROM_MIN = 10.0
_DESCRIPTORS_MAY_GROW = 10
_TASKS_MAY_GROW = 5
_WARM_UP_S = 4.0
# Longer than the echo keeps an idle connection, and the gateway one to it.
_CALM_S = 8.0
_START_S = 300.0
_SLEEPY_EVERY_S = 9.0
_SETTINGS = """
[gateway]
port = 0
[engines]
patience_s = 3
stop_timeout_s = 1
"""
# About 0.2 s an answer, so that many are under way when an engine ends.
_ECHO = {"delay_s": 0.015}


class Watched:
    """The server's process, with all that it said of itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._out = process.stdout
        self.told: dict[str, Any] = json.loads(self._out.readline() or "null") or {}
        if not self.told:
            raise SystemExit("the server did not start; it says why above")
        self.process = psutil.Process(process.pid)
        self.samples: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._out:
            self.samples.append(json.loads(line))

    def now(self) -> dict[str, Any]:
        """The next sample in which objects are counted."""
        seen = len(self.samples)
        while not any("objects" in each for each in self.samples[seen:]):
            time.sleep(0.1)
        return next(each for each in self.samples[seen:] if "objects" in each)

    def calm(self) -> bool:
        """Whether no request runs or waits."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.told['port']}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        busy = ("pressroom_requests_in_flight{", "pressroom_requests_waiting{")
        return not any(line.startswith(busy) and float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def server(folder: Path, counted_every_s: float) -> Iterator[Watched]:
    """A server in a process of its own, which can be looked into."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PRESSROOM_")}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("_soak_server.py")), str(counted_every_s)],
        cwd=folder,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "server.log").open("w"),
        text=True,
    ) as process:
        try:
            yield Watched(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=90)


def deploy(workspace: Workspace, model: Path | None) -> list[str]:
    """What the clients ask: an echo, one of two copies, one that sleeps, and a real model where one is given."""
    deployments = Deployments(workspace)
    wishes = [
        deployments.put("echo", ref="echo:1", digest="", engine="echo", options=_ECHO),
        deployments.put("pair", ref="pair:1", digest="", engine="echo", options=_ECHO, replicas=2),
        deployments.put("sleepy", ref="sleepy:1", digest="", engine="echo", idle_stop_s=2.0),
    ]
    models = ["echo"] * 4 + ["pair"] * 4
    if model is not None:
        from pressroom.deploy import make_wish
        from pressroom.registry import pull

        pull(workspace, str(model.resolve()), name="model")
        wishes.append(make_wish(workspace, "model:1", name="model", engine="llamacpp"))
        models.append("model")
    for wish in wishes:
        wait_until(deployments, wish, Phase.READY, timeout_s=_START_S)
    return models


async def load(watched: Watched, models: list[str], tally: Tally, *, seconds: float, clients: int, rate: float) -> None:
    """Visits for so long, with a row of the table now and then."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    told = watched.told
    visitors = [Visitor(told["port"], told["grpc"], models, tally, seed=number) for number in range(clients)]
    await asyncio.gather(
        *(each.run(clients / rate, over) for each in visitors),
        wake(told["port"], tally, over),
        show(watched, tally, seconds, over),
    )


async def show(watched: Watched, tally: Tally, seconds: float, over: asyncio.Event) -> None:
    """A row a minute, or ten in a short run."""
    if seconds <= _WARM_UP_S:
        return
    print(f"{'minute':>8}{'memory MB':>12}{'descriptors':>13}{'threads':>9}{'objects':>10}{'tasks':>7}{'visits':>9}")
    start = len(watched.samples)
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), min(60.0, seconds / 10))
        some = watched.samples[start:]
        counted = [each for each in some if "objects" in each]
        if counted:
            last, objects = some[-1], counted[-1]
            row = f"{(last['at'] - some[0]['at']) / 60:8.1f}{last['rss'] / _MB:12.1f}{last['descriptors']:13d}"
            row += f"{last['threads']:9d}{objects['objects']:10d}{objects['tasks']:7d}{tally.total:9d}"
            print(row, flush=True)


async def wake(port: int, tally: Tally, over: asyncio.Event) -> None:
    """Ask the one that sleeps, now and then, from several sides at once."""
    visitors = [Visitor(port, "", ["sleepy"], tally, seed=number) for number in range(5)]
    while not over.is_set():
        await asyncio.gather(*(each.ask_whole() for each in visitors))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _SLEEPY_EVERY_S)


def end_engines(watched: Watched, ended: list[str], every_s: float, over: threading.Event) -> None:
    """End an engine now and then: by kill -9, or by a stop that it does not wake from."""
    chance = random.Random(1)
    while not over.wait(every_s):
        engines = watched.process.children()
        if engines:
            how = signal.SIGSTOP if len(ended) % 2 else signal.SIGKILL
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(engines).send_signal(how)
                ended.append(how.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--rate", type=float, default=200.0, help="visits a second, of all clients together")
    parser.add_argument("--model", type=Path, help="a GGUF file that llama.cpp answers with, beside the echoes")
    parser.add_argument("--svg", type=Path, help="draw memory and descriptors over time")
    parser.add_argument("--quick", action="store_true", help="20 seconds: that it works, not whether anything grows")
    arguments = parser.parse_args()
    minutes = 1 / 3 if arguments.quick else arguments.minutes
    print(f"{minutes:g} minutes, {arguments.clients} clients, {arguments.rate:g} visits a second", flush=True)
    result = soak(arguments, minutes)
    print(json.dumps(result))
    if result["failures"]:
        raise SystemExit(1)


def soak(arguments: argparse.Namespace, minutes: float) -> dict[str, Any]:
    tally, ended, over = Tally(), [], threading.Event()  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory(prefix="pressroom-soak-") as folder:
        root = Path(folder)
        (root / "pressroom.toml").write_text(_SETTINGS, encoding="utf-8")
        with Workspace.open(root) as workspace, server(root, min(10.0, 6 * minutes)) as watched:
            models = deploy(workspace, arguments.model)
            how = {"clients": arguments.clients, "rate": arguments.rate}
            asyncio.run(load(watched, models, tally, seconds=_WARM_UP_S, **how))
            time.sleep(_CALM_S)
            before = watched.now()
            start = len(watched.samples)
            every_s = min(60.0, 20 * minutes)
            killer = threading.Thread(target=end_engines, args=(watched, ended, every_s, over), daemon=True)
            killer.start()
            asyncio.run(load(watched, models, tally, seconds=60 * minutes, **how))
            over.set()
            killer.join()
            samples = watched.samples[start:]
            calm = False
            for _ in range(60):
                calm = watched.calm()
                if calm:
                    break
                time.sleep(0.5)
            time.sleep(_CALM_S)
            after = watched.now()
        log = (root / "server.log").read_text(encoding="utf-8", errors="replace")
    return judged(arguments, minutes, samples, before, after, tally, ended, log, calm=calm)


def judged(
    arguments: argparse.Namespace,
    minutes: float,
    samples: list[dict[str, Any]],
    before: dict[str, Any],
    after: dict[str, Any],
    tally: Tally,
    ended: list[str],
    log: str,
    *,
    calm: bool,
) -> dict[str, Any]:
    """The result, with what makes it a failure; the visits are told, and drawn where that is wanted."""
    zero = samples[0]["at"]
    memory = [(each["at"] - zero, each["rss"] / _MB) for each in samples]
    descriptors = [(each["at"] - zero, float(each["descriptors"])) for each in samples]
    grows, opens = trend(memory), trend(descriptors)
    print_outcomes(tally)
    failures = list(faults(minutes, grows, opens, before, after, tally, log, calm=calm))
    for failure in failures:
        print(f"FAILED: {failure}")
    outcomes = {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(tally.outcomes.items())}
    result = {
        "memory_mb_per_10_minutes": round(grows.growth, 3),
        "memory_noise_mb_per_10_minutes": round(grows.noise, 3),
        "descriptors_per_10_minutes": round(opens.growth, 2),
        "descriptors_noise_per_10_minutes": round(opens.noise, 2),
        "targets": {"memory_mb_per_10_minutes": f"<= {_MAY_GROW_MB:g} beyond noise", "wrong": "0"},
        "memory_mb": {
            name: round(value, 1)
            for name, value in (
                ("first", memory[0][1]),
                ("half", grows.first),
                ("last", grows.last),
                ("most", max(value for _, value in memory)),
            )
        },
        "calm_before": _figures(before),
        "calm_after": _figures(after),
        "visits": tally.total,
        "wrong": tally.failures,
        "broken_streams": sum(count for (_, outcome), count in tally.outcomes.items() if outcome == BROKEN),
        "outcomes": outcomes,
        "engines_ended": len(ended),
        "failures": failures,
        "minutes": round(minutes, 2),
        "clients": arguments.clients,
        "rate": arguments.rate,
        "model": arguments.model.name if arguments.model else None,
        "load_average": os.getloadavg()[0],
        "machine": str(this_machine()),
        "date": datetime.date.today().isoformat(),
        "quick": arguments.quick,
    }
    if arguments.svg is not None:
        told = f"{result['date']}, {result['machine']}: {grows.growth:+.2f} ± {grows.noise:.2f} MB in ten minutes"
        arguments.svg.write_text(draw(memory, grows, descriptors, told), encoding="utf-8")
    return result


def faults(
    minutes: float,
    grows: Trend,
    opens: Trend,
    before: dict[str, Any],
    after: dict[str, Any],
    tally: Tally,
    log: str,
    *,
    calm: bool,
) -> Iterator[str]:
    """What is not as it should be."""
    if minutes >= _JUDGED_FROM_MIN and grows.surely > _MAY_GROW_MB:
        yield f"memory grows by {grows.growth:.2f} MB in ten minutes (± {grows.noise:.2f})"
        more = {kind: count - before["kinds"].get(kind, 0) for kind, count in after["kinds"].items()}
        print("objects that became more:", dict(sorted(more.items(), key=lambda pair: -pair[1])[:12]))
    if minutes >= _JUDGED_FROM_MIN and opens.surely > _DESCRIPTORS_MAY_GROW:
        yield f"open descriptors grow by {opens.growth:.1f} in ten minutes (± {opens.noise:.1f})"
    if not calm:
        yield "requests are still counted as running after the last client left"
    for what, may in (("descriptors", _DESCRIPTORS_MAY_GROW), ("tasks", _TASKS_MAY_GROW), ("threads", 10)):
        if after[what] > before[what] + may:
            yield f"{after[what]} {what} are left of the load; there were {before[what]} before it"
    if tally.failures:
        yield f"{tally.failures} answers were wrong"
        for each in tally.wrong:
            print("wrong:", each)
    if "Traceback" in log:
        yield "the server's log has an exception nobody expected"
        print(log[max(0, log.index("Traceback") - 500) :][:3000])


def _figures(sample: dict[str, Any]) -> dict[str, Any]:
    found = {name: sample[name] for name in ("descriptors", "threads", "objects", "tasks")}
    return {"memory_mb": round(sample["rss"] / _MB, 1), **found}


def print_outcomes(tally: Tally) -> None:
    """How the visits of each kind went."""
    kinds: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(tally.outcomes.items()):
        kinds.setdefault(kind, {})[outcome] = count
    for kind, outcomes in kinds.items():
        print(f"{kind:>16}: " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))


if __name__ == "__main__":
    main()
