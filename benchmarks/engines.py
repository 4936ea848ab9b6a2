"""`auto` beside each of the engines it chooses among, at 1, 4, 16 and 64 clients.

    python benchmarks/engines.py --gguf FILE --safetensors DIR --vllm-python PYTHON [--quick] [--svg FILE]

The same model in two forms, a GGUF file on llama.cpp and a folder of safetensors on vLLM, deployed as one: `press
deploy … --engine auto --with …`. At each number of clients llama.cpp is asked on its own port, then vLLM on its own,
then `auto` through the gateway: the same processes, moments apart. The machine changes by a tenth from one start of an
engine to the next; what is compared here shares all of that. An engine that nobody asks takes next to nothing of the
machine, and `idle_cpu` says how much: CPU seconds a second of both engines together.

Every client asks for `--tokens` tokens after a prompt of about 23, each different, streamed, greedily and past any end.
A figure is all tokens over the time from the first request to the last token, the median of the rounds; before them
the clients ask once without being counted, for what compiles at its first use, and so that `auto` knows the load.
`ratio_N` is what `auto` gives at N clients over what the better engine gives, the median over the cycles.
With one of the two forms, or with --quick, its engine alone is measured.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from _engines_picture import draw
from _gateway_running import Deployed, cpu_seconds, family, workspace

from pressroom.engines import Endpoint, speed
from pressroom.kernel import EngineError, this_machine

_CLIENTS = (1, 4, 16, 64)
_QUICK_TOKENS = 16
_TARGET = ">= 0.97"
# What the checks of parity may take.
_CHECK_S = 300.0
# What a deployment may take to answer: vLLM loads for a minute or two, and `auto` measures both engines first.
_PATIENCE = {"PRESSROOM_ENGINES_START_TIMEOUT_S": "1800"}

# How long idle engines are watched.
_IDLE_S = 5.0

# By name: `tokens_per_second` and `ttft_ms`, each by number of clients, a list with an entry a cycle.
Found = dict[str, dict[str, dict[int, list[Any]]]]


Named = dict[str, Endpoint]


def measure(asked: Named, model: str, found: Found, *, clients: list[int], tokens: int, rounds: int) -> None:
    """One cycle: each of those asked in turn, at each number of clients. What was measured goes into `found`."""
    for number in clients:
        for name, endpoint in asked.items():
            speed(endpoint, clients=number, tokens=tokens, model=model)
            runs = [speed(endpoint, clients=number, tokens=tokens, model=model) for _ in range(rounds)]
            rates = [round(run.tokens_per_second, 1) for run in runs]
            first = round(statistics.median(run.ttft_s for run in runs) * 1e3, 1)
            kept = found.setdefault(name, {"tokens_per_second": {}, "ttft_ms": {}})
            kept["tokens_per_second"].setdefault(number, []).append(rates)
            kept["ttft_ms"].setdefault(number, []).append(first)
            print(f"{name}, {number} clients: {rates} tokens/s, first after {first} ms", flush=True)


def alone(kind: str, weights: Path, settings: dict[str, str], more: list[str], cycles: int, **how: Any) -> Found:
    """One engine, asked directly."""
    found: Found = {}
    with workspace(settings=settings) as ours:
        ours.press("pull", str(weights.resolve()), "--as", "weights")
        port = ours.deploy("weights", kind, "--engine", kind, *more)
        if not port:
            raise SystemExit(f"the engine {kind} has no port that answers")
        _checked(ours, kind)
        for _ in range(cycles):
            measure({kind: Endpoint(host="127.0.0.1", port=port, pid=0)}, kind, found, **how)
    return found


def beside(
    gguf: Path, safetensors: Path, settings: dict[str, str], more: list[str], cycles: int, **how: Any
) -> tuple[Found, dict[str, Any]]:
    """Both engines and `auto`, and what is told of the deployment."""
    found: Found = {}
    with workspace(settings=settings) as ours:
        ours.press("pull", str(gguf.resolve()), "--as", "gguf")
        ours.press("pull", str(safetensors.resolve()), "--as", "safetensors")
        ours.deploy("gguf", "auto", "--engine", "auto", "--with", "safetensors", *more)
        _checked(ours, "auto")
        copies = _told(ours, "auto")["copies"]
        asked = {each["engine"]: _endpoint(each["url"]) for each in copies}
        asked["auto"] = Endpoint(host="127.0.0.1", port=ours.port, pid=0)
        idle = _idle_cpu([each["pid"] for each in copies])
        for _ in range(cycles):
            measure(asked, "auto", found, **how)
        return found, {"idle_cpu": idle, "deployment": _told(ours, "auto")}


def _endpoint(url: str) -> Endpoint:
    found = urlsplit(url)
    return Endpoint(host=found.hostname or "", port=found.port or 0, pid=0)


def _idle_cpu(pids: list[int]) -> float:
    """CPU seconds a second that these processes and what they started take while nobody asks."""
    processes = [one for pid in pids for one in family(psutil.Process(pid))]
    before = cpu_seconds(processes)
    time.sleep(_IDLE_S)
    return round((cpu_seconds(processes) - before) / _IDLE_S, 4)


def _checked(ours: Deployed, name: str) -> None:
    """Wait until the parity of every copy was checked: the server does that once it serves, and it takes both cores."""
    deadline = time.monotonic() + _CHECK_S
    while time.monotonic() < deadline:
        copies = _told(ours, name)["copies"]
        if copies and all("parity" in copy for copy in copies):
            return
        time.sleep(1)
    print(f"{name}: its parity is not checked after {_CHECK_S:.0f} s", file=sys.stderr, flush=True)


def _told(ours: Deployed, name: str) -> Any:
    """What `press ps` says of a deployment: its copies, and what was measured of them."""
    return next(one for one in ours.press("ps")["deployments"] if one["name"] == name)


def ratios(found: Found) -> dict[str, float | None]:
    """`ratio_N`: the median over the cycles of what `auto` gives at N clients over what the better engine gives; None
    where one was not measured."""
    rates = {name: each["tokens_per_second"] for name, each in found.items()}
    made: dict[str, float | None] = {}
    for number in _CLIENTS:
        auto = rates.get("auto", {}).get(number, [])
        engines = [each[number] for name, each in rates.items() if name != "auto" and number in each]
        cycles = [
            statistics.median(ours) / max(statistics.median(each[cycle]) for each in engines)
            for cycle, ours in enumerate(auto)
            if engines
        ]
        made[f"ratio_{number}"] = round(statistics.median(cycles), 3) if cycles else None
    return made


def flat(found: Found) -> dict[str, dict[int, list[float]]]:
    """Tokens a second of all rounds of all cycles, by name and number of clients."""
    return {
        name: {number: [rate for cycle in cycles for rate in cycle] for number, cycles in rates.items()}
        for name, rates in ((name, each["tokens_per_second"]) for name, each in found.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="the model as GGUF, for llama.cpp")
    parser.add_argument("--safetensors", type=Path, help="the same model as a folder of safetensors, for vLLM")
    parser.add_argument("--vllm-python", help="Python of an environment with vLLM; the setting otherwise")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=list(_CLIENTS))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cycles", type=int, default=3, help="times that all of it is repeated")
    parser.add_argument("--deploy-option", action="append", default=[], help="passed to every `press deploy`")
    parser.add_argument("--svg", type=Path, help="draw tokens a second against clients")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="llama.cpp alone at 1 and 4 clients: under a minute; nothing without --gguf",
    )
    arguments = parser.parse_args()
    began = time.perf_counter()
    found, told, missing = run(arguments)
    result: dict[str, Any] = {
        **ratios(found),
        "targets": {f"ratio_{number}": _TARGET for number in _CLIENTS},
        "engines": found,
        **told,
        "not_measured": missing,
        "tokens": _QUICK_TOKENS if arguments.quick else arguments.tokens,
        "load_average": os.getloadavg()[0],
        "machine": str(this_machine()),
        "date": datetime.date.today().isoformat(),
        "quick": arguments.quick,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if arguments.svg is not None and found:
        lines = {name: {n: statistics.median(r) for n, r in each.items()} for name, each in flat(found).items()}
        arguments.svg.write_text(draw(lines, result), encoding="utf-8")
    print(json.dumps(result))


def run(arguments: argparse.Namespace) -> tuple[Found, dict[str, Any], dict[str, str]]:
    """What was measured, by name; what is told of the deployment; and why the rest was not measured."""
    settings = dict(_PATIENCE)
    if arguments.vllm_python:
        settings["PRESSROOM_ENGINES_VLLM_PYTHON"] = arguments.vllm_python
    how = {
        "clients": [number for number in arguments.clients if number <= 4 or not arguments.quick],
        "tokens": _QUICK_TOKENS if arguments.quick else arguments.tokens,
        "rounds": 1 if arguments.quick else arguments.rounds,
        "cycles": 1 if arguments.quick else arguments.cycles,
    }
    gguf, safetensors, more = arguments.gguf, arguments.safetensors, arguments.deploy_option
    needs = {"llamacpp": {"--gguf": gguf}, "vllm": {"--safetensors": safetensors}}
    needs["auto"] = needs["llamacpp"] | needs["vllm"]
    missing = {
        name: f"needs {' and '.join(flag for flag, path in paths.items() if path is None)}"
        for name, paths in needs.items()
        if None in paths.values()
    }
    found: Found = {}
    told: dict[str, Any] = {}
    try:
        if arguments.quick and gguf:
            missing |= {name: "left out of the quick form" for name in needs if name not in ("llamacpp", *missing)}
            found = alone("llamacpp", gguf, settings, more, **how)
        elif gguf and safetensors:
            found, told = beside(gguf, safetensors, settings, more, **how)
        elif gguf:
            found = alone("llamacpp", gguf, settings, more, **how)
        elif safetensors:
            found = alone("vllm", safetensors, settings, more, **how)
    except (EngineError, SystemExit) as error:
        missing |= {name: str(error) for name in needs if name not in missing and name not in found}
        print(f"not measured: {error}", file=sys.stderr, flush=True)
    return found, told, missing


if __name__ == "__main__":
    main()
