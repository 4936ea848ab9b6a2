"""What the gateway adds to an engine, how many tokens a second are left, and how it stands beside other gateways.

    python benchmarks/gateway.py [--quick] [--model FILE.gguf] [--peers litellm,mlflow,…] [--environments DIR]

The gateway runs as it is deployed: `press apply` in a temporary workspace, the whole server on one core; the engine
and the load generator share another. All its features are on: a key is asked for and has limits, there are budgets in
money and in tokens for the key, its team, the deployment and all, each deployment has two routes with prices, retries
and a circuit breaker, and each request is a row of the ledger. Each measurement of the gateway has one of the engine
alone right before it, and the figures are medians over these pairs. The echo engine stands for an engine that costs
nothing; `tokens_ratio` is taken on llama.cpp with a real model where one is found: `--model`, else the first GGUF
version of the workspace.

The peers are put in front of the very same echo engine, each in an environment of its own (made on demand under
`--environments`), on the core the gateway is on, and asked in turn with it: `rps_vs_…` is the median over the rounds of
our requests a second over theirs, at 16 clients. MLServer answers KServe's V2 protocol from its own process, where ours
asks the engine behind it. A peer that cannot be measured is named with the reason. `--quick` takes only the peers whose
environments are there.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _gateway_overhead import deploy_echoes, overhead, tokens_ratio
from _gateway_peers import NotMeasured, Peer
from _gateway_rounds import FULL, QUICK, Bench, Question, compare
from _gateway_running import FEATURES, Cores, Deployed, deploy_routed, every_feature, request_for, two_cores, workspace
from _gateway_v2 import PATH, message, rest, says
from _load import generator

from pressroom.kernel import PressroomError, Workspace, this_machine

_TEXT = "What is the difference between a printer's devil and a compositor?"
_TARGETS = {
    "added_p50_ms": "<= 0.15",
    "added_p99_ms": "<= 0.5",
    "added_ttft_ms": "<= 0.3",
    "tokens_ratio": ">= 0.97",
    "rps_vs_litellm": ">= 100",
    "rps_vs_litellm_tuned": ">= 25",
    "rps_vs_mlflow": ">= 8",
    "rps_vs_fastapi_httpx": ">= 10",
    "v2_rest_vs_mlserver": ">= 8",
    "v2_grpc_vs_mlserver": ">= 2",
}
_PEERS = ("litellm", "mlflow", "fastapi", "mlserver")
_HERE = Path(__file__).parent


def peers_of(names: list[str]) -> list[Peer]:
    """The peers of the files with these names."""
    return [peer for name in names for peer in importlib.import_module(f"_gateway_{name}").PEERS]


def questions(peer: Peer) -> list[Question]:
    """What a peer is asked: MLServer through its two doors, the others for a chat completion."""
    if peer.name != "mlserver":
        request = request_for("echo", stream=False)
        words = _chat_words(request)
        return [
            Question(
                name=f"rps_vs_{peer.name}",
                request=request,
                stream=request_for("echo", stream=True, max_tokens=1),
                check=lambda port: says(port, request, words, grpc=False),
            )
        ]
    over_rest, over_grpc = rest("mirror", _TEXT), message("mirror", _TEXT)
    return [
        Question(
            name="v2_rest_vs_mlserver",
            request=over_rest,
            check=lambda port: says(port, over_rest, _TEXT, grpc=False),
        ),
        Question(
            name="v2_grpc_vs_mlserver",
            request=over_grpc,
            grpc=PATH,
            check=lambda port: says(port, over_grpc, _TEXT, grpc=True),
        ),
    ]


def _chat_words(request: bytes) -> str:
    """The beginning of what the echo says to a chat request."""
    asked = json.loads(request.partition(b"\r\n\r\n")[2])
    return str(asked["messages"][-1]["content"])[:40]


def beside_peers(ours: Deployed, engine: int, arguments: argparse.Namespace, cores: Cores) -> dict[str, Any]:
    """Each comparison by its name, and why the others were not made."""
    deploy_routed(ours, "mirror", {})
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pressroom-benchmark-peers-") as folder:
        for peer in peers_of(arguments.peers):
            bench = Bench(
                ours=ours.running(),
                engine=engine if peer.name != "mlserver" else 0,
                environments=arguments.environments,
                folder=Path(folder),
                cores=cores,
                lengths=QUICK if arguments.quick else FULL,
                make=not arguments.quick,
            )
            for question in questions(peer):
                try:
                    found[question.name] = compare(peer, question, bench)
                except NotMeasured as error:
                    missing[question.name] = str(error)
                    print(f"{question.name}: not measured: {error}", file=sys.stderr, flush=True)
    return {"measured": found, "not_measured": missing}


def find_model() -> Path | None:
    """A GGUF version of the workspace around the current directory, if there is one."""
    from pressroom.registry import Registry

    try:
        with Workspace.open() as found:
            registry = Registry(found)
            for version in registry.list():
                if version.metadata.get("format") == "gguf":
                    return registry.materialise(version)
    except PressroomError as error:
        print(f"no model of the workspace is used: {error}", file=sys.stderr)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute on 2 cores")
    parser.add_argument("--model", type=Path, help="GGUF file for tokens_ratio")
    parser.add_argument(
        "--peers",
        type=lambda names: [name for name in names.split(",") if name],
        default=list(_PEERS),
        help=f"of {', '.join(_PEERS)}; '' for none",
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=_HERE.parent / "build" / "benchmark-environments",
        help="folder of the peers' virtual environments",
    )
    parser.add_argument("--only-peers", action="store_true", help="leave out the measurements against the engine alone")
    arguments = parser.parse_args()
    unknown = set(arguments.peers) - set(_PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(_PEERS)}")
    began = time.perf_counter()
    cores = two_cores()
    result: dict[str, Any] = {}
    with workspace(server_cores=cores.gateway, engine_cores=cores.load, settings=FEATURES) as ours:
        every_feature(ours)
        echoes = deploy_echoes(ours)
        if not arguments.only_peers:
            seconds, repeats = (0.5, 3) if arguments.quick else (1.5, 7)
            measured = {
                stream: overhead(ours, *echoes[stream], stream=stream, seconds=seconds, repeats=repeats, cores=cores)
                for stream in (False, True)
            }
            result |= added(measured[False], measured[True])
        peers = beside_peers(ours, echoes[False][1], arguments, cores)
    if not arguments.only_peers:
        seconds, repeats = (2.0, 3) if arguments.quick else (10.0, 7)
        tokens = tokens_ratio(arguments.model or find_model(), seconds=seconds, repeats=repeats, clients=4, cores=cores)
        print(f"tokens: {json.dumps(tokens)}", flush=True)
        result |= {"tokens_ratio": tokens["ratio"], "tokens_ratio_engine": tokens["engine"], "tokens": tokens}
    result |= {name: None for name in _TARGETS if "_vs_" in name}
    result |= {name: found["ratio"] for name, found in peers["measured"].items()}
    result |= {
        "targets": _TARGETS,
        "peers": peers["measured"],
        "peers_not_measured": peers["not_measured"],
        "pinned": bool(cores.load),
        "load_generator": generator()[1],
        "load_average": os.getloadavg()[0],
        "machine": str(this_machine()),
        "date": datetime.date.today().isoformat(),
        "quick": arguments.quick,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result))


def added(plain: dict[int, Any], stream: dict[int, Any]) -> dict[str, Any]:
    """The figures against the engine alone by the names they have in the result."""
    return {
        "added_p50_ms": plain[1]["added_p50_ms"],
        "added_p99_ms": plain[1]["added_p99_ms"],
        "added_ttft_ms": stream[1]["added_ttft_ms"],
        "cpu_us_per_request": plain[16]["cpu_us_per_request"],
        "cpu_us_per_chunk": stream[16]["cpu_us_per_chunk"],
        "plain": plain,
        "stream": stream,
    }


if __name__ == "__main__":
    main()
