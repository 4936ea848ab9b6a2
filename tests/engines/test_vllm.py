"""vLLM as an engine: how its process is started, watched and ended, with a stand-in for the library that answers
nothing, and the whole contract with the real one where an environment has it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pressroom.engines import Capabilities, Endpoint, Engine, EngineSpec, State, create, environments
from pressroom.engines.backends import vllm
from pressroom.kernel import EngineStartError, Workspace, this_machine
from pressroom.testing import engine_contract
from pressroom.testing.engine_contract import EngineContract

linux = pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel ends a process with its parent")

# In place of vLLM, as far as the launcher knows it: names, arguments, and processes that start processes. It has routes
# and no answers. The architecture in config.json says how it behaves.
_ENTRY = """
import asyncio, http.server, json, multiprocessing, os, sys, threading, time

def work(method, depth):
    if depth:
        multiprocessing.get_context(method).Process(target=work, args=(method, depth - 1)).start()
    print("worker", os.getpid(), flush=True)
    time.sleep(3600)

async def run_server_worker(address, sock, args):
    with open(os.path.join(args.model, "config.json")) as file:
        kind = json.load(file)["architectures"][0]
    print("arguments", json.dumps(sys.modules["vllm"].given), flush=True)
    print("environment", json.dumps(dict(os.environ)), flush=True)
    if kind == "Fails":
        print("ValueError: No available memory for the cache blocks. Try increasing it.", file=sys.stderr)
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    if kind == "Raises":
        raise ValueError("the sky is falling")
    method = "fork" if kind == "Forks" else "spawn"
    multiprocessing.get_context(method).Process(target=work, args=(method, 1)).start()
    routes = {"/v1/embeddings"} if kind == "Encoder" else {"/v1/completions", "/v1/chat/completions"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            models = {"data": [{"max_model_len": args.max_model_len}]}
            self.say(200, models if self.path == "/v1/models" else {})

        def do_POST(self):
            self.say(400 if self.path in routes else 404, {"error": {}})

        def say(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def __init__(self):
            super().__init__(sock.getsockname(), Handler, bind_and_activate=False)
            self.socket = sock

    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (2, 15):
        loop.add_signal_handler(number, asked.set)
    if kind == "Loads":
        await asyncio.sleep(3600)
    server = Server()
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if kind == "Leaves":
        await asyncio.sleep(0.5)
        return
    await asked.wait()
    for process in multiprocessing.active_children():
        process.kill()
"""
_FILES = {
    "vllm/__init__.py": "given = []",
    "vllm/platforms.py": (
        "class current_platform:\n    device_type = 'cpu'\n    is_cpu = staticmethod(lambda: True)\n"
    ),
    "vllm/tool_parsers.py": (
        "class ToolParserManager:\n    list_registered = staticmethod(lambda: ['hermes', 'llama3_json'])\n"
    ),
    "vllm/utils/__init__.py": "",
    "vllm/utils/argparse_utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/launchers/__init__.py": "",
    "vllm/entrypoints/launchers/cli_args.py": (
        "import vllm\n"
        "class _Parser:\n"
        "    def __init__(self, parser): self._parser = parser\n"
        "    def parse_args(self, given):\n"
        "        vllm.given = given\n"
        "        return self._parser.parse_known_args(given)[0]\n"
        "def make_arg_parser(parser):\n"
        "    for name in ('model', 'dtype', 'tool-strict-level'): parser.add_argument(f'--{name}')\n"
        "    parser.add_argument('--max-model-len', type=int)\n"
        "    parser.add_argument('--tensor-parallel-size', type=int, choices=(1, 2))\n"
        "    return _Parser(parser)\n"
        "def validate_parsed_serve_args(parsed): pass\n"
    ),
    "vllm/entrypoints/launchers/api_server/__init__.py": "",
    "vllm/entrypoints/launchers/api_server/entry.py": _ENTRY,
    "vllm-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n",
}


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a real virtual environment whose vLLM is the stand-in."""
    home = tmp_path_factory.mktemp("stand-in")
    venv.create(home, symlinks=True, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    for name, source in _FILES.items():
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return home / "bin" / "python"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a model without a tensor."""

    def make(architecture: str = "Spawns", *, template: str = "{{ messages }}", **config: Any) -> Path:
        made = tmp_path / "model"
        made.mkdir(exist_ok=True)
        (made / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
        (made / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        (made / "chat_template.jinja").write_text(template)
        return made

    return make


Start = Callable[..., Engine]


@pytest.fixture
def engine_of(
    folder: Callable[..., Path], stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Start]:
    """Makes an engine on the stand-in; all are stopped at the end. Their scratch folders are under `tmp_path`."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made: list[Engine] = []

    def make(architecture: str = "Spawns", *, template: str = "{{ messages }}", **spec: Any) -> Engine:
        options = {"python": str(stand_in), **spec.pop("options", {})}
        given = {"name": "tested", "log": tmp_path / "engine.log", "context": 512, **spec}
        if "model" not in given:
            given["model"] = folder(architecture, template=template)
        made.append(create("vllm", EngineSpec(**given, options=options)))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def said(tmp_path: Path, what: str, count: int = 1) -> list[Any]:
    """What the stand-in printed behind the word, once that often."""
    found: list[Any] = []

    def all_there() -> bool:
        lines = (tmp_path / "engine.log").read_text().splitlines()
        found[:] = [json.loads(line.removeprefix(what)) for line in lines if line.startswith(what)]
        return len(found) >= count

    engine_contract._until(all_there)
    return found


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def refused(engine: Engine) -> EngineStartError:
    with pytest.raises(EngineStartError) as caught:
        engine.start()
    assert engine.pid is None
    return caught.value


# The process


def test_it_becomes_ready_and_says_what_it_is(
    engine_of: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE", "VLLM_SERVER_DEV_MODE"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    engine = engine_of(slots=3, threads=2, options={"dtype": "bfloat16", "kv_cache_gib": 0.5, "max_batched_tokens": 64})
    endpoint = engine.start()
    assert (endpoint.host, endpoint.context, endpoint.slots, endpoint.version) == ("127.0.0.1", 512, 3, "vllm 9.9")
    assert endpoint.capabilities == Capabilities(logprobs=True, json_schema=True, several=True)
    assert endpoint.details["device"] == "cpu" and endpoint.details["kv_cache_bytes"] == 1 << 29
    assert engine.health().state is State.READY
    (arguments,) = said(tmp_path, "arguments")
    assert {
        "--served-model-name=tested",
        "--host=127.0.0.1",
        f"--port={endpoint.port}",
        "--max-num-seqs=3",
        "--max-model-len=512",
        "--dtype=bfloat16",
        f"--kv-cache-memory-bytes={1 << 29}",
        "--max-num-batched-tokens=64",
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
        "--enforce-eager",
    } <= set(arguments)
    assert {"--tool-call-parser=hermes", "--tool-strict-level=parameter"} <= set(arguments), (
        "a call that is demanded can be had of every model that chats"
    )
    assert not [given for given in arguments if "quantization" in given]
    (environment,) = said(tmp_path, "environment")
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_LOGGING_LEVEL"] == "INFO", "requests are in the debug log"
    assert environment["OMP_NUM_THREADS"] == "2" and environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert not {"VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE", "VLLM_SERVER_DEV_MODE"} & set(environment)


def test_stop_leaves_nothing(engine_of: Start, tmp_path: Path) -> None:
    engine = engine_of()
    endpoint = engine.start()
    workers = said(tmp_path, "worker", 2)
    assert len(set(workers)) == 2
    assert list(tmp_path.glob("pressroom-vllm-*"))
    engine.stop()
    assert all(ended(pid) for pid in [endpoint.pid, *workers])
    assert not list(tmp_path.glob("pressroom-vllm-*"))


@linux
@pytest.mark.parametrize("architecture", ["Spawns", "Forks"])
def test_its_processes_end_with_it_on_kill_9(engine_of: Start, tmp_path: Path, architecture: str) -> None:
    engine = engine_of(architecture)
    endpoint = engine.start()
    workers = said(tmp_path, "worker", 2)
    assert psutil.Process(workers[0]).is_running()
    os.kill(endpoint.pid, signal.SIGKILL)
    engine_contract._until(lambda: all(ended(pid) for pid in workers))
    engine_contract._until(lambda: engine.health().state is State.DEAD)
    (left,) = tmp_path.glob("pressroom-vllm-*")
    engine.stop()
    engine.start()
    assert not left.exists(), "the next one removes what a killed one left"


@linux
@pytest.mark.parametrize("architecture", ["Spawns", "Forks", "Loads"])
def test_all_of_it_ends_with_a_killed_parent(
    folder: Callable[..., Path], stand_in: Path, tmp_path: Path, architecture: str
) -> None:
    log = tmp_path / "engine.log"
    spec = {
        "name": "tested",
        "model": folder(architecture),
        "context": 512,
        "log": log,
        "options": {"python": str(stand_in)},
    }
    given = json.dumps({"engine": "vllm", "spec": spec}, default=str)
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", engine_contract._PARENT, given], env=variables)
    engine_contract._until(lambda: log.exists() and log.read_text().count("worker") == 2)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 3
    parent.kill()
    parent.wait()
    engine_contract._until(lambda: all(ended(process.pid) for process in family))


def test_ctrl_c_is_left_to_the_parent(engine_of: Start) -> None:
    engine = engine_of()
    endpoint = engine.start()
    os.kill(endpoint.pid, signal.SIGINT)
    assert engine.health().state is State.READY
    engine_contract._until(lambda: engine.health().state is State.READY)
    assert engine.pid == endpoint.pid


def test_a_server_that_ends_by_itself_is_a_failure(engine_of: Start, tmp_path: Path) -> None:
    engine = engine_of("Leaves")
    engine.start()
    engine_contract._until(lambda: engine.pid is None)
    assert engine.health().detail == "the process ended with exit status 1"
    assert "ended by itself" in (tmp_path / "engine.log").read_text()


@pytest.mark.parametrize(("trained", "passed"), [(None, None), (2048, None), (131072, 8192)])
def test_the_context_that_nobody_asked_for(
    engine_of: Start, folder: Callable[..., Path], tmp_path: Path, trained: int | None, passed: int | None
) -> None:
    model = folder(**({"max_position_embeddings": trained} if trained else {}))
    endpoint = engine_of(model=model, context=0, slots=0).start()
    (arguments,) = said(tmp_path, "arguments")
    assert (f"--max-model-len={passed}" in arguments) == bool(passed)
    assert endpoint.context == (passed or 0) and endpoint.slots == 64


# What it can do depends on the model


def test_an_encoder_gives_embeddings_only(engine_of: Start) -> None:
    assert engine_of("Encoder").start().capabilities == Capabilities(
        chat=False, completions=False, streaming=False, embeddings=True, several=True
    )


def test_a_model_without_a_template_does_not_chat(engine_of: Start) -> None:
    capabilities = engine_of(template="").start().capabilities
    assert capabilities is not None and not capabilities.chat and capabilities.completions


def test_a_template_that_knows_tools_gets_their_parser(engine_of: Start, tmp_path: Path) -> None:
    endpoint = engine_of(template="{% if tools %}<tool_call>{% endif %}{{ messages }}").start()
    assert endpoint.capabilities is not None and endpoint.capabilities.tools
    assert endpoint.details["tool_parser"] == "hermes"
    (arguments,) = said(tmp_path, "arguments")
    assert "--enable-auto-tool-choice" in arguments


def test_a_parser_that_vllm_does_not_have(engine_of: Start) -> None:
    error = refused(engine_of(options={"tool_parser": "herms"}))
    assert "no tool parser 'herms'" in error.message and "Did you mean hermes?" in error.hint
    # A newer or older one may have renamed what the template asks for.
    endpoint = engine_of(template="{% if tools %}[TOOL_CALLS]").start()
    assert endpoint.capabilities is not None and endpoint.capabilities.chat and not endpoint.capabilities.tools


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{{ messages }}", None),
        ("call the toolset", None),
        ("{% for tool in tools %}", "hermes"),
        ("{% if tools %}[TOOL_CALLS]", "mistral"),
        ("{% if tools %}<|python_tag|>", "llama3_json"),
        ("{% if tools %}<tool_call><function=", "qwen3_xml"),
    ],
)
def test_the_parser_of_a_template(template: str, parser: str | None) -> None:
    assert vllm._tool_parser(template) == parser


def test_where_a_template_is_found(folder: Callable[..., Path]) -> None:
    model = folder(template="a")
    assert vllm._chat_template(model) == "a"
    (model / "chat_template.jinja").unlink()
    assert vllm._chat_template(model) == ""
    (model / "tokenizer_config.json").write_text('{"chat_template": "b"}')
    assert vllm._chat_template(model) == "b"
    (model / "tokenizer_config.json").write_text('{"chat_template": [{"name": "tool_use", "template": "tools"}]}')
    assert "tools" in vllm._chat_template(model)
    (model / "tokenizer_config.json").write_text("[")
    assert vllm._chat_template(model) == ""


# What goes wrong


def test_an_environment_that_is_not_there(engine_of: Start, tmp_path: Path) -> None:
    error = refused(engine_of(options={"python": str(tmp_path / "nowhere" / "python")}))
    assert "nowhere" in error.message and "press engines install vllm" in error.hint


def test_the_environment_of_the_workspace_is_the_default(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESSROOM_WORKSPACE", str(tmp_path / "ours"))
    error = refused(create("vllm", EngineSpec(name="tested", model=folder())))
    assert str(tmp_path / "ours" / ".pressroom" / "engines" / "vllm") in error.message


def test_a_deployment_gets_the_python_of_its_workspace(stand_in: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, environ={"PRESSROOM_ENGINES_VLLM_PYTHON": str(stand_in)})
    assert vllm.Backend.defaults(workspace) == {"python": str(stand_in)}
    assert vllm.Backend.unusable(workspace) == ""
    assert "press engines install vllm" in vllm.Backend.unusable(Workspace.open(tmp_path, environ={}))


def test_an_environment_without_vllm(engine_of: Start, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", symlinks=True, with_pip=False)
    error = refused(engine_of(options={"python": str(tmp_path / "empty" / "bin" / "python")}))
    assert "cannot be imported" in error.message and "press engines install vllm --again" in error.hint


def test_the_cause_is_found_above_the_last_word(engine_of: Start) -> None:
    error = refused(engine_of("Fails"))
    assert "No available memory for the cache blocks" in error.message and "'tested'" in error.message
    assert error.facts["reported"]
    assert "the sky is falling" in refused(engine_of("Raises")).message


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "ValueError: Available memory on node 0 (18.93/23.09 GiB) on kv cache allocation is less than requested "
            "memory for kv (1000.0 GiB). Decrease --kv-cache-memory-bytes, or reduce CPU memory used.",
            "Available memory on node 0 (18.93/23.09 GiB) on kv cache allocation is less than requested memory for kv "
            "(1000.0 GiB)",
        ),
        (
            "  Value error, User-specified max_model_len (32768) is greater than the derived max_model_len "
            "(max_position_embeddings=8192.0 or model_max_length=None in model's config.json). To allow overriding",
            "User-specified max_model_len (32768) is greater than the derived max_model_len "
            "(max_position_embeddings=8192.0 or model_max_length=None in model's config.json)",
        ),
        (
            "ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, Model architectures ['NoSuchForCausalLM'] are not supported for now. "
            "Supported architectures: dict_keys(['AfmoeForCausalLM'",
            "Model architectures ['NoSuchForCausalLM'] are not supported for now",
        ),
        (
            "ValidationError: 1 validation error for VllmConfig\n  Value error, Cannot find the config file for awq "
            "[type=value_error, input_value=ArgsKwargs((), {'model_co...",
            "Cannot find the config file for awq",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of",
            "CUDA out of memory. Tried to allocate 1.50 GiB",
        ),
        ("RuntimeError: Worker failed with error 'x'\nKeyError: 'lm_head.weight'", "'lm_head.weight'"),
        ("RuntimeError: Engine core initialization failed. See root cause above.", ""),
        ("INFO 11-21 nothing of note", ""),
    ],
)
def test_the_line_that_matters(line: str, cause: str) -> None:
    engine = vllm.Backend(EngineSpec(name="tested"))
    assert engine.cause(["INFO loading", *line.splitlines(), "INFO done"]) == cause


def test_arguments_that_vllm_refuses(engine_of: Start) -> None:
    error = refused(engine_of(options={"tensor_parallel": 5}))
    assert "does not take these options" in error.message and "invalid choice: 5" in error.message


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"dtyp": "bfloat16"}, "no option 'dtyp'", "dtype"),
        ({"xyzzy": 1}, "no option 'xyzzy'", "kv_cache_gib"),
        ({"dtype": "int4"}, "'dtype' of vllm is not one of auto", ""),
        ({"kv_cache_gib": 0}, "above 0", ""),
        ({"kv_cache_gib": True}, "above 0", ""),
        ({"gpu_memory_utilization": 1.5}, "at most 1", ""),
        ({"tensor_parallel": 1.0}, "whole number", ""),
        ({"tool_parser": "--trust-remote-code"}, "name of a parser", ""),
        ({"enforce_eager": "yes"}, "true or false", ""),
    ],
)
def test_options_are_checked(engine_of: Start, options: dict[str, Any], message: str, hint: str) -> None:
    error = refused(engine_of(options=options))
    assert message in error.message and hint in error.hint


def test_a_folder_without_a_model(engine_of: Start, tmp_path: Path, folder: Callable[..., Path]) -> None:
    assert "got none" in refused(engine_of(model=None)).message
    assert "is not a folder" in refused(engine_of(model=tmp_path / "gone")).message
    model = folder()
    weights = model / "model.safetensors"
    for damage, message in (
        (b"", "does not end within the file"),
        (struct.pack("<Q", 2**62) + b"{}", "does not end within the file"),
        (struct.pack("<Q", 2) + b"{]", "cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "cannot be read"),
        (struct.pack("<Q", 7) + b'{"a":1}', "cannot be read"),
        (struct.pack("<Q", 28) + b'{"a":{"data_offsets":[0,9]}}', "9 bytes are missing"),
    ):
        weights.write_bytes(damage)
        error = refused(engine_of(model=model))
        assert message in error.message and error.hint
    weights.unlink()
    assert "no .safetensors file" in refused(engine_of(model=model)).message
    (model / "config.json").write_text('{"architectures": []}')
    assert "names no architecture" in refused(engine_of(model=model)).message
    (model / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(engine_of(model=model)).message


# Sizes

_SMOLLM2 = {
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}


def test_the_size_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 64 << 30

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory)
    token = 2 * 30 * 3 * 64 * 2
    # 65 blocks of 128 tokens for each of 8 slots.
    assert vllm.kv_cache_bytes(_SMOLLM2, context=8192, slots=8) == token * 128 * 65 * 8
    assert vllm.kv_cache_bytes({"text_config": _SMOLLM2}, context=8192, slots=8) == token * 128 * 65 * 8
    assert vllm.kv_cache_bytes({**_SMOLLM2, "dtype": "float32"}, context=8192, slots=8) == 2 * token * 128 * 65 * 8
    assert vllm.kv_cache_bytes(_SMOLLM2, context=128, slots=1) == 256 << 20
    assert vllm.kv_cache_bytes(_SMOLLM2, context=8192, slots=64) == 4 << 30
    Memory.available = 1 << 20
    assert vllm.kv_cache_bytes(_SMOLLM2, context=8192, slots=64) == token * 128 * 66, "one request always fits"


@pytest.mark.parametrize(("cores", "workers", "threads"), [(2, 1, 2), (8, 1, 8), (64, 1, 0), (8, 2, 0)])
def test_threads_that_nobody_counted(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int) -> None:
    machine = dataclasses.replace(this_machine(), physical_cores=cores)
    monkeypatch.setattr(vllm, "this_machine", lambda: machine)
    assert vllm._threads(workers) == threads


def test_the_context_a_model_was_made_for() -> None:
    assert vllm.trained_context(_SMOLLM2) == 8192
    assert vllm.trained_context({"text_config": _SMOLLM2}) == 8192
    assert vllm.trained_context({}) is None
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert vllm.trained_context({"max_position_embeddings": 32768, "rope_scaling": yarn}) == 131072
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    assert vllm.trained_context({"max_position_embeddings": 131072, "rope_scaling": llama3}) == 131072


# The real one. PRESSROOM_TEST_VLLM_PYTHON names the Python of an environment with vLLM, SMOLLM2_SAFETENSORS a folder
# with SmolLM2-135M-Instruct as transformers saves it. Loading takes most of a minute, so what only asks shares one
# engine.


@pytest.fixture(scope="session")
def real() -> dict[str, Any]:
    python = Path(os.environ.get("PRESSROOM_TEST_VLLM_PYTHON") or environments.default_python())
    trouble = environments.look(python).trouble
    if trouble:
        pytest.skip(f"no environment with vLLM: {trouble}; PRESSROOM_TEST_VLLM_PYTHON may name one")
    model = os.environ.get("SMOLLM2_SAFETENSORS")
    if not model:
        pytest.skip("no model: SMOLLM2_SAFETENSORS must name a folder with SmolLM2 as transformers saves it")
    return {"name": "tested", "model": Path(model), "context": 512, "options": {"python": str(python)}}


@pytest.fixture(scope="module")
def shared(real: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = create("vllm", EngineSpec(**real, slots=8, log=tmp_path_factory.mktemp("vllm") / "engine.log"))
    engine.start()
    yield engine
    engine.stop()


@pytest.mark.slow
class TestRealProcess(EngineContract):
    engine_name = "vllm"

    @pytest.fixture
    def spec(self, tmp_path: Path, real: dict[str, Any]) -> EngineSpec:
        return EngineSpec(**real, slots=4, log=tmp_path / "engine.log")


@pytest.mark.slow
class TestRealAnswers(EngineContract):
    engine_name = "vllm"

    @pytest.fixture
    def spec(self, shared: Engine) -> EngineSpec:
        return shared.spec

    @pytest.fixture
    def engine(self, shared: Engine) -> Engine:
        return shared

    @pytest.fixture
    def endpoint(self, shared: Engine) -> Endpoint:
        endpoint: Endpoint = shared._endpoint  # type: ignore[attr-defined]
        return endpoint

    def test_equal_prefixes_are_computed_once(self, endpoint: Endpoint) -> None:
        body = {"prompt": "A harbour in winter. " * 60, "max_tokens": 1, "temperature": 0}
        first = engine_contract._ask(endpoint, "/v1/completions", body)[1]["usage"]
        second = engine_contract._ask(endpoint, "/v1/completions", body)[1]["usage"]
        assert first["prompt_tokens_details"]["cached_tokens"] == 0
        assert second["prompt_tokens_details"]["cached_tokens"] > 128

    def test_it_answers_to_any_name(self, endpoint: Endpoint) -> None:
        body = {"model": "somebody", "prompt": "A", "max_tokens": 1}
        status, answer = engine_contract._ask(endpoint, "/v1/completions", body)
        assert status == 200 and answer["model"] == "tested"

    def test_several_answers_and_prompts(self, endpoint: Endpoint) -> None:
        body = {"prompt": ["One", "Two"], "n": 2, "max_tokens": 3, "logprobs": 2, "return_tokens_as_token_ids": True}
        status, answer = engine_contract._ask(endpoint, "/v1/completions", body)
        assert status == 200, answer
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"]["completion_tokens"] <= 12
        for choice in answer["choices"]:
            assert all(token.startswith("token_id:") for token in choice["logprobs"]["tokens"])

    def test_a_prompt_over_the_context(self, endpoint: Endpoint) -> None:
        status, answer = engine_contract._ask(endpoint, "/v1/completions", {"prompt": "word " * 600, "max_tokens": 1})
        assert status == 400 and "maximum context length is 512" in answer["error"]["message"]

    def test_a_named_tool_is_called(self, endpoint: Endpoint) -> None:
        function = {"name": "greet", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}
        wanted = {
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": "greet"}},
        }
        status, answer = engine_contract._ask(
            endpoint, "/v1/chat/completions", engine_contract._chat(**wanted, max_tokens=64)
        )
        assert status == 200, answer
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "greet"

    def test_what_was_asked_is_not_in_the_log(self, spec: EngineSpec, endpoint: Endpoint) -> None:
        secret = "Xylograph-4711"
        engine_contract._ask(endpoint, "/v1/completions", {"prompt": secret, "max_tokens": 1})
        engine_contract._ask(endpoint, "/v1/completions", {"prompt": secret, "max_tokens": "many"})
        assert spec.log is not None and secret not in spec.log.read_text()


# Each test once: those that ask with the shared engine, the others with one of their own.
_ASKING = {
    name
    for name in vars(EngineContract)
    if name.startswith("test_") and "endpoint" in vars(EngineContract)[name].__annotations__
} - {"test_a_killed_engine_is_dead", "test_ctrl_c_is_left_to_the_parent"}
for _name in [name for name in vars(EngineContract) if name.startswith("test_")]:
    setattr(TestRealProcess if _name in _ASKING else TestRealAnswers, _name, None)


@pytest.mark.slow
def test_the_stand_in_is_like_the_real_one(real: dict[str, Any], stand_in: Path) -> None:
    """Every name the launcher uses is in the real library as well."""
    code = (
        "import vllm.entrypoints.launchers.api_server.entry as entry, vllm.platforms as platforms\n"
        "import vllm.entrypoints.launchers.cli_args as cli, vllm.utils.argparse_utils as arguments\n"
        "import vllm.tool_parsers as parsers\nassert 'hermes' in parsers.ToolParserManager.list_registered()\n"
        "entry.run_server_worker, platforms.current_platform.is_cpu(), platforms.current_platform.device_type\n"
        "cli.make_arg_parser(arguments.FlexibleArgumentParser()), cli.validate_parsed_serve_args\n"
    )
    for python in (real["options"]["python"], str(stand_in)):
        subprocess.run([python, "-I", "-c", code], check=True, capture_output=True)
