"""llama.cpp, through the wheel `xllamacpp`: GGUF files on the CPU, or on the GPU where the wheel was built for one.

Options of a deployment: `gpu_layers`, `batch`, `ubatch` (tokens a step), `cache_ram_mib` (memory for prompts that may
come again), `threads_batch` (threads that read prompts, 0: as `threads`), `chat_template` (Jinja, over
the model's own).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from pressroom.engines import child
from pressroom.engines.base import Capabilities
from pressroom.engines.options import Known, text, whole, wrong_option
from pressroom.engines.process import ProcessEngine
from pressroom.kernel import PressroomError, this_machine

# llama.cpp keeps prompts of up to 8 GiB by default; a small machine serves other things as well.
_CACHE_RAM_MIB = 512
_DEFAULT_CONTEXT = 8192
# Nobody's origin (RFC 2606): no web page may read what the engine answers. The default lets every page.
_NO_ORIGIN = "http://pressroom.invalid"
# How llama.cpp and ggml word the line that matters among many.
_CAUSE = re.compile(r"(?:error loading model: |ggml_aligned_malloc: |GGML_ASSERT)(.+)")


_ATTRIBUTES = {"gpu_layers": "n_gpu_layers", "batch": "n_batch", "ubatch": "n_ubatch"}
_OPTIONS: Known = {
    "gpu_layers": whole(-1),
    "batch": whole(-1),
    "ubatch": whole(-1),
    "cache_ram_mib": whole(-1),
    "threads_batch": whole(-1),
    "chat_template": text(),
}


class Backend(ProcessEngine):
    """One llama.cpp server in a process of its own."""

    capabilities = Capabilities(logprobs=True, json_schema=True, states_tokens=True, finishes=True)
    formats = ("gguf",)
    rank = 10
    options = _OPTIONS
    requires = ("xllamacpp",)

    def cause(self, lines: list[str]) -> str:
        for line in lines:
            found = _CAUSE.search(line)
            if found:
                return found[1]
        return ""


def default_context(trained: int | None) -> int:
    """Tokens of context a request gets when nobody said: the model's own, at most 8192 (each slot pays for its own)."""
    return min(trained or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)


def main() -> None:
    """The engine's process: load the model, serve it, end with the parent."""
    spec = child.read_spec()
    # A failed assertion in ggml prints a page of debugger output by default, which hides the assertion itself.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    model = _model(spec)
    try:
        import xllamacpp
    except ImportError as error:
        child.failed(f"xllamacpp cannot be imported: {error}", hint="Install it again: pip install xllamacpp")
    params = _params(xllamacpp, spec, model)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        child.failed(
            f"llama.cpp cannot load the model of {spec['name']!r}",
            hint="Take a newer llama.cpp for a newer architecture (`pip install --upgrade xllamacpp`), or less context "
            "or fewer slots where memory is short.",
        )
    host, _, port = server.listening_address.removeprefix("http://").rpartition(":")
    context, tools = _properties(host, int(port))
    child.ready(
        host=host,
        port=int(port),
        context=context,
        capabilities={
            "logprobs": True,
            "json_schema": True,
            "tools": tools,
            "states_tokens": True,
            "finishes": True,
        },
        version=f"xllamacpp {xllamacpp.__version__}",
        slots=params.n_parallel,
        threads=params.cpuparams.n_threads,
    )
    child.wait_for_parent()
    # Requests may still run, and C++ destructors would wait for them; the parent has let go of them.
    os._exit(0)


def _model(spec: dict[str, Any]) -> Path:
    if not spec["model"]:
        child.failed("llama.cpp needs a model and got none", hint="Deploy a version whose format is gguf.")
    model = Path(spec["model"])
    if not model.is_file():
        child.failed(f"there is no file {model}", hint="Pull the model again.")
    return model


def _params(xllamacpp: Any, spec: dict[str, Any], model: Path) -> Any:
    from pressroom.store import inspect

    try:
        trained = inspect(model).context_length
    except PressroomError as error:
        child.failed(error.message, hint=error.hint)
    context = int(spec["context"]) or default_context(trained)
    if trained and context > trained:
        child.failed(
            f"a context of {context} tokens was asked for, and the model was trained with {trained}",
            hint=f"Ask for at most {trained}.",
        )
    slots = int(spec["slots"])
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {spec["name"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = slots
    # The slots share what is allocated: each gets its part.
    params.n_ctx = context * slots
    # One thread a physical core: measured best for decoding, which waits for memory, and given to both kinds of work.
    params.cpuparams.n_threads = int(spec["threads"]) or this_machine().physical_cores
    params.cache_ram_mib = _CACHE_RAM_MIB
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it shows the prompts of others
    params.ui = False
    params.ctx_shift = False  # a context that is full ends the answer; dropping its beginning in silence does not
    params.cors_origins = _NO_ORIGIN
    params.offline = True
    # What this does is move layers between devices; with none but the CPU it loads the model twice for nothing.
    params.fit_params = len(xllamacpp.get_device_info()) > 1
    _apply_options(params, spec["options"])
    return params


def _apply_options(params: Any, options: dict[str, Any]) -> None:
    wrong = wrong_option("llamacpp", options, _OPTIONS)
    if wrong is not None:
        child.failed(*wrong)
    for name, value in options.items():
        if name == "threads_batch":
            params.cpuparams_batch.n_threads = value or -1
        else:
            setattr(params, _ATTRIBUTES.get(name, name), value)


def _properties(host: str, port: int) -> tuple[int, bool]:
    """The context a slot really got (llama.cpp caps it at what the model was trained with; 0: not known), and whether
    the model's chat template knows tools: where it does not, llama.cpp leaves them out without a word."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/props")
        found = json.loads(connection.getresponse().read())
        tools = bool(found.get("chat_template_caps", {}).get("supports_tool_calls"))
        return int(found["default_generation_settings"]["n_ctx"]), tools
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        print(f"the context is not known: {error!r}", file=sys.stderr)  # noqa: T201  the log of the engine
        return 0, False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
