"""`auto` beside each of the engines it chooses among, at 1, 4, 16 and 64 clients.

    python benchmarks/engines.py --gguf FILE --safetensors DIR --vllm-python PYTHON [--quick] [--svg FILE]

The same model in two forms: a GGUF file on llama.cpp and a folder of safetensors on vLLM. Each engine is deployed alone
and asked directly, without the gateway; then both are deployed as one, `press deploy … --engine auto --with …`, and
asked through the gateway. So the machine never has more to do than what is measured.

Every client asks for `--tokens` tokens after a prompt of about 23, each different, streamed, greedily and past any end.
A figure is all tokens over the time from the first request to the last token, the median of the rounds; before them
the clients ask once without being counted, for what compiles at its first use, and so that `auto` knows the load.
`ratio_N` is what `auto` gives at N clients over what the better engine gives.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _engines_picture import draw
from _gateway_running import Deployed, workspace

from pressroom.engines import Endpoint, speed
from pressroom.kernel import EngineError, this_machine

_CLIENTS = (1, 4, 16, 64)
_QUICK_TOKENS = 16
_TARGET = ">= 0.97"
# What the checks of parity may take.
_CHECK_S = 300.0
# What a deployment may take to answer: vLLM loads for a minute or two, and `auto` measures both engines first.
_PATIENCE = {"PRESSROOM_ENGINES_START_TIMEOUT_S": "1800"}

Rates = dict[int, list[float]]


def measure(endpoint: Endpoint, model: str, *, clients: list[int], tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of each round and the median time to the first token, by the number of clients."""
    rates: Rates = {}
    first: dict[int, float] = {}
    for number in clients:
        speed(endpoint, clients=number, tokens=tokens, model=model)
        runs = [speed(endpoint, clients=number, tokens=tokens, model=model) for _ in range(rounds)]
        rates[number] = [round(run.tokens_per_second, 1) for run in runs]
        first[number] = round(statistics.median(run.ttft_s for run in runs) * 1e3, 1)
        print(f"{model}, {number} clients: {rates[number]} tokens/s, first after {first[number]} ms", flush=True)
    return {"tokens_per_second": rates, "ttft_ms": first}


def alone(kind: str, weights: Path, settings: dict[str, str], more: list[str], **how: Any) -> dict[str, Any]:
    """One engine, asked directly."""
    with workspace(settings=settings) as ours:
        ours.press("pull", str(weights.resolve()), "--as", "weights")
        port = ours.deploy("weights", kind, "--engine", kind, *more)
        if not port:
            raise SystemExit(f"the engine {kind} has no port that answers")
        _checked(ours, kind)
        return measure(Endpoint(host="127.0.0.1", port=port, pid=0), kind, **how)


def chosen(gguf: Path, safetensors: Path, settings: dict[str, str], more: list[str], **how: Any) -> dict[str, Any]:
    """Both, through the gateway."""
    with workspace(settings=settings) as ours:
        ours.press("pull", str(gguf.resolve()), "--as", "gguf")
        ours.press("pull", str(safetensors.resolve()), "--as", "safetensors")
        ours.deploy("gguf", "auto", "--engine", "auto", "--with", "safetensors", *more)
        _checked(ours, "auto")
        found = measure(Endpoint(host="127.0.0.1", port=ours.port, pid=0), "auto", **how)
        return found | {"deployment": _told(ours, "auto")}


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


def ratios(auto: Rates, engines: dict[str, Rates]) -> dict[str, float | None]:
    """`ratio_N`: the median of `auto` at N clients over that of the better engine; None where one was not measured."""
    found: dict[str, float | None] = {}
    for number in _CLIENTS:
        best = max((statistics.median(rates[number]) for rates in engines.values() if rates.get(number)), default=0.0)
        ours = auto.get(number)
        found[f"ratio_{number}"] = round(statistics.median(ours) / best, 3) if ours and best else None
    return found


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several measurements of the same as one: the rounds of all, the median of the first tokens."""
    rates: Rates = {}
    for run in runs:
        for number, each in run["tokens_per_second"].items():
            rates.setdefault(number, []).extend(each)
    first = {number: statistics.median(run["ttft_ms"][number] for run in runs) for number in rates}
    last = runs[-1]
    return {**last, "tokens_per_second": rates, "ttft_ms": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="the model as GGUF, for llama.cpp")
    parser.add_argument("--safetensors", type=Path, help="the same model as a folder of safetensors, for vLLM")
    parser.add_argument("--vllm-python", help="Python of an environment with vLLM; the setting otherwise")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=list(_CLIENTS))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cycles", type=int, default=2, help="times that all of it is repeated: engines, then `auto`")
    parser.add_argument("--only", choices=("llamacpp", "vllm", "auto"), action="append", help="measure only this")
    parser.add_argument("--deploy-option", action="append", default=[], help="passed to every `press deploy`")
    parser.add_argument("--svg", type=Path, help="draw tokens a second against clients")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="llama.cpp alone at 1 and 4 clients: under a minute; nothing without --gguf",
    )
    arguments = parser.parse_args()
    began = time.perf_counter()
    found, missing = run(arguments)
    engines: dict[str, Rates] = {name: each["tokens_per_second"] for name, each in found.items() if name != "auto"}
    auto = found["auto"]["tokens_per_second"] if "auto" in found else {}
    result: dict[str, Any] = {
        **ratios(auto, engines),
        "targets": {f"ratio_{number}": _TARGET for number in _CLIENTS},
        "engines": found,
        "not_measured": missing,
        "tokens": _QUICK_TOKENS if arguments.quick else arguments.tokens,
        "load_average": os.getloadavg()[0],
        "machine": str(this_machine()),
        "date": datetime.date.today().isoformat(),
        "quick": arguments.quick,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if arguments.svg is not None and found:
        lines = {
            name: {n: statistics.median(r) for n, r in each["tokens_per_second"].items()}
            for name, each in found.items()
        }
        arguments.svg.write_text(draw(lines, result), encoding="utf-8")
    print(json.dumps(result))


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """What was measured, by name, and why the rest was not."""
    settings = dict(_PATIENCE)
    if arguments.vllm_python:
        settings["PRESSROOM_ENGINES_VLLM_PYTHON"] = arguments.vllm_python
    how = {"clients": arguments.clients, "tokens": arguments.tokens, "rounds": arguments.rounds}
    if arguments.quick:
        how |= {
            "clients": [number for number in arguments.clients if number <= 4],
            "tokens": _QUICK_TOKENS,
            "rounds": 1,
        }
    more = arguments.deploy_option
    gguf, safetensors = arguments.gguf, arguments.safetensors
    parts: dict[str, tuple[dict[str, Path | None], Callable[[], dict[str, Any]]]] = {
        "llamacpp": ({"--gguf": gguf}, lambda: alone("llamacpp", gguf, settings, more, **how)),
        "vllm": ({"--safetensors": safetensors}, lambda: alone("vllm", safetensors, settings, more, **how)),
        "auto": (
            {"--gguf": gguf, "--safetensors": safetensors},
            lambda: chosen(gguf, safetensors, settings, more, **how),
        ),
    }
    runs: dict[str, list[dict[str, Any]]] = {}
    missing: dict[str, str] = {}
    wanted = arguments.only or (["llamacpp"] if arguments.quick else list(parts))
    for _ in range(1 if arguments.quick else arguments.cycles):
        for name, (needs, part) in parts.items():
            if name not in wanted:
                missing[name] = "not asked for"
            elif None in needs.values():
                missing[name] = f"needs {' and '.join(flag for flag, path in needs.items() if path is None)}"
            elif name not in missing:
                try:
                    measured = part()
                    runs.setdefault(name, []).append(measured)
                except (EngineError, SystemExit) as error:
                    missing[name] = str(error)
                    print(f"{name}: not measured: {error}", file=sys.stderr, flush=True)
    return {name: together(each) for name, each in runs.items()}, missing


if __name__ == "__main__":
    main()
