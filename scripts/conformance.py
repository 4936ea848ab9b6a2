"""Runs the conformance checks on every engine that can run here and writes docs/conformance.md.

    python scripts/conformance.py [--gguf FILE] [--safetensors DIR] [--encoder DIR] [--vllm-python PATH] [--only ENGINE]

An engine without its weights or its environment keeps the results it had: they are in docs/conformance.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from pressroom.engines import EngineSpec, create, engine_class
from pressroom.gateway import Route
from pressroom.kernel import PressroomError, this_machine
from pressroom.testing.conformance import CHECKS, Outcome, Result, conformance, matrix
from pressroom.testing.gateway import GatewayThread

_DOCS = Path(__file__).resolve().parent.parent / "docs"
_PAGE = """# Conformance

What each engine does of what the protocols promise, behind the gateway, as `press conformance NAME` finds it on a
running deployment. `yes`: as the protocol says. `400`: refused with an error that says so, never ignored in silence.
Empty: not asked.

{matrix}
The checks are `pressroom.testing.conformance`; each asks as a client would, over OpenAI's API, KServe V2 over REST and
gRPC. "The same answer and usage through every door" compares text and tokens of one greedy answer over completions, V2
`generate`, `generate_stream`, `ModelInfer` and `ModelStreamInfer`, streamed and not; the one for chats does it from
`/v1/chat/completions`.

| column | what ran | when and where |
|---|---|---|
{rows}

Made by `python scripts/conformance.py`; the results themselves are in [conformance.json](conformance.json).
"""


def measured(engine: str, spec: EngineSpec) -> dict[str, Any]:
    """The results of one engine, and what ran."""
    running = create(engine, spec)
    try:
        endpoint = running.start()
        capabilities = endpoint.capabilities or engine_class(engine).capabilities
        route = Route(
            model=spec.name,
            host=endpoint.host,
            port=endpoint.port,
            ref=f"{spec.name}:1",
            engine=engine,
            context=endpoint.context,
            capabilities=capabilities,
        )
        wanted = [
            check.name
            for check in CHECKS
            if (check.needs == "embeddings") == capabilities.embeddings and getattr(capabilities, check.needs)
        ]
        with GatewayThread(route, grpc=True) as gateway:
            results = conformance(
                gateway.url,
                spec.name,
                grpc=f"127.0.0.1:{gateway.grpc_port}",
                only=wanted,
                on_result=lambda r: print(f"  {r.outcome.value:8} {r.check:24} {r.detail[:150]}", flush=True),
            )
    finally:
        running.stop()
    return {
        "results": [dataclasses.asdict(result) for result in results],
        "what": f"{spec.model.name if spec.model else 'no weights'} on {endpoint.version}",
        "where": f"{datetime.date.today().isoformat()}, {this_machine()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="a chat model for llamacpp")
    parser.add_argument("--safetensors", type=Path, help="a folder with a chat model for transformers and vllm")
    parser.add_argument("--encoder", type=Path, help="a folder with a sentence encoder for transformers")
    parser.add_argument("--vllm-python", help="the Python of an environment with vLLM")
    parser.add_argument("--only", action="append", help="only this column; repeatable")
    given = parser.parse_args()
    sizes: dict[str, Any] = {"context": 2048, "slots": 4}
    wanted: dict[str, tuple[str, Path | None, dict[str, Any]]] = {
        "llamacpp": ("llamacpp", given.gguf, {}),
        "vllm": ("vllm", given.safetensors, {"python": given.vllm_python} if given.vllm_python else {}),
        "transformers": ("transformers", given.safetensors, {"dtype": "float32"}),
        "transformers, encoder": ("transformers", given.encoder, {}),
        "echo": ("echo", None, {}),
    }
    path = _DOCS / "conformance.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    failures = 0
    for column, (engine, model, options) in wanted.items():
        if (given.only and column not in given.only) or (model is None and engine != "echo"):
            continue
        if engine == "vllm" and not given.vllm_python:
            continue
        print(column, flush=True)
        more = {} if column == "transformers, encoder" else sizes
        try:
            found[column] = measured(engine, EngineSpec(name="model", model=model, options=options, **more))
        except PressroomError as error:
            print(f"  not run: {error} {error.hint}", file=sys.stderr)
            continue
        failures += sum(result["outcome"] == "failed" for result in found[column]["results"])
    found = {column: found[column] for column in [*wanted, *found] if column in found}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    table = matrix(
        {
            column: [Result(**{**each, "outcome": Outcome(each["outcome"])}) for each in one["results"]]
            for column, one in found.items()
        }
    )
    rows = "\n".join(f"| `{column}` | {one['what']} | {one['where']} |" for column, one in found.items())
    (_DOCS / "conformance.md").write_text(_PAGE.format(matrix=table, rows=rows), encoding="utf-8")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
