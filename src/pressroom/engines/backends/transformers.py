"""transformers: every safetensors folder it can load, on the CPU or a GPU; sentence encoders answer with embeddings.

Options of a deployment: `dtype` (auto, float32, bfloat16, float16), `device` (auto, cpu, cuda:0 …), `cache_mib` (memory
for prompts that may come again, 256), `attn` (auto, sdpa, eager, flash_attention_2). Nothing is fetched from the
network, no code of a model is run, and pickled weights are not read.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import threading
from typing import Any

from pressroom.engines import child
from pressroom.engines._transformers.options import OPTIONS
from pressroom.engines.base import Capabilities
from pressroom.engines.process import ProcessEngine

_INSTALL = "pip install 'pressroom[transformers]'"
# Answers held to a format need it; everything else does without.
_CONSTRAINED = importlib.util.find_spec("llguidance") is not None


class Backend(ProcessEngine):
    """One model in a process of its own. What it can do depends on the model, and is in the endpoint."""

    capabilities = Capabilities(
        logprobs=True, several=True, embeddings=True, json_schema=_CONSTRAINED, tools=_CONSTRAINED, says_counts=True
    )
    formats = ("safetensors",)
    rank = 30
    default_slots = 8
    options = OPTIONS
    requires = ("torch", "transformers")
    extra = "transformers"


def main() -> None:
    """The engine's process: load the model, serve it, end with the parent."""
    spec = child.read_spec()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Read when the libraries are imported. A model is a folder on this machine: nothing may be looked for elsewhere.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ[name] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A thread that waits for the next step must not take a core from others meanwhile.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pressroom.engines._transformers import folder, options

    chosen = options.Options.read(spec["options"])
    path = folder.find(spec["name"], spec["model"])
    try:
        import torch
        import transformers
    except ImportError as error:
        child.failed(f"transformers cannot be imported: {error}", hint=f"Install it again: {_INSTALL}")
    from pressroom.engines._transformers.loading import load

    loaded = load(spec, folder.read(path), chosen)
    port = _serve(spec, loaded, chosen)
    served = loaded.served
    can = Capabilities(
        chat=served is not None and served.template is not None,
        completions=served is not None,
        streaming=served is not None,
        embeddings=loaded.encoder is not None,
        logprobs=served is not None,
        json_schema=served is not None and served.grammars is not None,
        tools=served is not None and served.tools,
        several=served is not None,
        says_counts=served is not None,
    )
    child.ready(
        host="127.0.0.1",
        port=port,
        context=loaded.context,
        version=f"transformers {transformers.__version__}, torch {torch.__version__}",
        slots=int(spec["slots"]),
        capabilities={name: getattr(can, name) for name in Capabilities.__dataclass_fields__},
        device=str(loaded.device),
        dtype=loaded.dtype,
        threads=torch.get_num_threads(),
        **({"dimensions": loaded.encoder.size} if loaded.encoder is not None else {}),
    )
    child.wait_for_parent()
    # The model's thread may be in the middle of a step; the parent has let go of it.
    os._exit(0)


def _serve(spec: dict[str, Any], loaded: Any, chosen: Any) -> int:
    """Start the server in a thread of its own: the main thread waits for the parent, and signals arrive there."""
    import uvloop

    from pressroom.engines._transformers.apart import ApartRows
    from pressroom.engines._transformers.routes import EmbeddingRoutes, Routes, TextRoutes
    from pressroom.engines._transformers.rows import Rows
    from pressroom.engines._transformers.scheduler import Scheduler, Tell
    from pressroom.engines._transformers.server import Server

    slots = int(spec["slots"])
    ports: list[int] = []
    listening = threading.Event()

    def scheduler(tell: Tell) -> Scheduler:
        model = loaded.model
        rows = Rows(model, slots) if model.batches else ApartRows(model)
        cache = chosen.cache_mib << 20 if model.batches else 0
        return Scheduler(model, rows, slots=slots, cache_bytes=cache, tell=tell)

    async def serve() -> None:
        routes: Routes
        if loaded.encoder is not None:
            routes = EmbeddingRoutes(spec["name"], loaded.encoder)
        else:
            routes = TextRoutes(loaded.served, scheduler)
        ports.append(await Server(routes.handle).listen())
        listening.set()
        await asyncio.Event().wait()

    def run() -> None:
        try:
            uvloop.run(serve())
        finally:
            listening.set()

    threading.Thread(target=run, name="server", daemon=True).start()
    listening.wait()
    if not ports:
        sys.stderr.flush()
        child.failed("the server of the engine did not start", hint="Its log says why.")
    return ports[0]


if __name__ == "__main__":
    main()
