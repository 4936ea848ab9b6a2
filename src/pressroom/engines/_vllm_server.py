"""The process of a vLLM engine. It runs under the Python of vLLM's own environment, where Pressroom is not installed:
the standard library only, until vLLM is imported. Started by `engines/backends/vllm.py`, never imported by it.

vLLM's OpenAI server runs in the main thread; its scheduler and its workers are processes that it spawns. Each of these
imports this file again (as `__mp_main__`), and that is where it is tied to the life of its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import fcntl
import http.client
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

_PARENT_VARIABLE = "PRESSROOM_ENGINE_PARENT"
_PR_SET_PDEATHSIG = 1
_SCRATCH_PREFIX = "pressroom-vllm-"
# Nobody may ask for more; vLLM's own default of 20 is OpenAI's limit as well.
_MAX_LOGPROBS = 20
_KEEP_ALIVE_S = 75


def _end_with_parent() -> None:
    """Let the kernel end this process when the one that made it ends, `kill -9` included."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(os.environ.get(_PARENT_VARIABLE, os.getppid())):
            os._exit(1)  # it ended before the kernel was asked
    os.environ[_PARENT_VARIABLE] = str(os.getpid())


# vLLM spawns or forks, by platform and setting. What it makes is tied to its own parent, at any depth. The first
# process is tied by its stdin instead: the signal comes when the *thread* that started a process ends.
if __name__ == "__mp_main__":
    _end_with_parent()
os.environ[_PARENT_VARIABLE] = str(os.getpid())
os.register_at_fork(after_in_child=_end_with_parent)


def main() -> None:
    child = _agreement()
    spec = child.read_spec()
    _prepare_environment(spec)
    try:
        version = _version()
        entry = _entry()
        platform = importlib.import_module("vllm.platforms").current_platform
    except ImportError as error:
        traceback.print_exc()
        child.failed(
            f"vLLM cannot be imported by {sys.executable}: {error}",
            hint="Make its environment anew with: press engines install vllm --again",
        )
    if platform.is_cpu():
        _prepare_threads(int(spec["threads"]))
    _settle_parser(child, spec)
    _answer_to_any_name()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    try:
        arguments = _arguments(spec, port, cpu=bool(platform.is_cpu()))
        parsed = _parsed(arguments)
    except SystemExit:  # how an argument parser says no; its words are in the log
        child.failed("vLLM does not take these options", hint="`press logs` shows what it says of them.")
    announced = (child, spec, port, version, str(platform.device_type))
    threading.Thread(target=_announce, args=announced, name="announce", daemon=True).start()
    try:
        _run(child, entry.run_server_worker(f"http://127.0.0.1:{port}", listener, parsed))
    except BaseException as error:  # noqa: BLE001  the edge of a process
        _fail(child, error)
    if not child._asked_to_end.is_set():
        _say("vLLM ended by itself: its scheduler or one of its workers is gone")
        _leave(1)
    _leave(0)


def _agreement() -> ModuleType:
    """`pressroom.engines.child`, by its path."""
    path = Path(__file__).with_name("child.py")
    found = importlib.util.spec_from_file_location("pressroom_engine_child", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _prepare_environment(spec: dict[str, Any]) -> None:
    environ = os.environ
    # A key would shut out the gateway; the others open ports, routes or the log to what nobody asked for.
    for name in ("VLLM_API_KEY", "VLLM_PORT", "VLLM_SERVER_DEV_MODE", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE"):
        environ.pop(name, None)
    # This one would win over the size that is passed.
    environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    environ.update(
        {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # Requests are in the debug log.
            "VLLM_LOGGING_LEVEL": "INFO",
            "VLLM_LOGGING_COLOR": "0",
            "VLLM_DISABLE_LOG_LOGO": "1",
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(_KEEP_ALIVE_S),
            # What its processes say to each other stays on this machine.
            "VLLM_HOST_IP": "127.0.0.1",
        }
    )
    if Path("/sys/class/net/lo").exists():
        environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Compiled code is kept where it is by default, not in the folder that goes away.
    environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")))
    environ["TMPDIR"] = environ["VLLM_RPC_BASE_PATH"] = _scratch()
    tempfile.tempdir = None  # it may have been looked up
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _prepare_threads(threads: int) -> None:
    """For the workers on a CPU. 0 lets vLLM choose and bind them."""
    # Threads that wait for each other do so asleep: with another process on the same cores, two that spin came to a
    # tenth of the speed (19 against 200 tokens a second with 16 clients).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        # Bound to cores, two engines on one machine would share the same few.
        os.environ.update({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)})


def _scratch() -> str:
    """A folder for sockets and the like. A process that is killed leaves its own; the next one removes it."""
    base = Path(tempfile.gettempdir())
    for left in base.glob(f"{_SCRATCH_PREFIX}*"):
        try:
            if left.stat().st_uid == os.getuid() and _lock(left):
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # somebody else removes it
    made = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX))
    assert _lock(made), "a new folder is nobody's"
    return str(made)


def _lock(folder: Path) -> bool:
    """Hold the folder until this process ends; False where another process does."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return False
    return True


def _version() -> str:
    """What is installed: `vllm 0.32.0` or `vllm-cpu 0.32.0`."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ImportError("neither vllm nor vllm-cpu is installed there")


def _entry() -> Any:
    """The module that has `run_server_worker`; its place changed with 0.3x."""
    try:
        return importlib.import_module("vllm.entrypoints.launchers.api_server.entry")
    except ModuleNotFoundError:
        return importlib.import_module("vllm.entrypoints.openai.api_server")


def _parsed(arguments: list[str]) -> Any:
    try:
        cli = importlib.import_module("vllm.entrypoints.launchers.cli_args")
    except ModuleNotFoundError:
        cli = importlib.import_module("vllm.entrypoints.openai.cli_args")
    try:
        kind = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser
    except ModuleNotFoundError:
        kind = importlib.import_module("vllm.utils").FlexibleArgumentParser
    parser = cli.make_arg_parser(kind(prog="vllm"))
    # By default only the name of a call that is demanded is sure, and its arguments may be any JSON.
    if "tool_strict_level" in vars(parser.parse_args([])):
        arguments = [*arguments, "--tool-strict-level=parameter"]
    parsed = parser.parse_args(arguments)
    cli.validate_parsed_serve_args(parsed)
    return parsed


def _answer_to_any_name() -> None:
    """The gateway finds the engine by the name a client gave, which may be another than this one's; there is one model
    here, whatever it is called."""
    try:
        serving = importlib.import_module("vllm.entrypoints.openai.models.serving")
    except ModuleNotFoundError:
        return  # then vLLM knows the name of the deployment only
    for kind in vars(serving).values():
        if isinstance(kind, type) and hasattr(kind, "is_base_model"):
            kind.is_base_model = lambda self, model_name: True


def _settle_parser(child: ModuleType, spec: dict[str, Any]) -> None:
    """Refuse a tool parser that this vLLM does not have, before it loads; one that nobody asked for is left out."""
    try:
        manager = importlib.import_module("vllm.tool_parsers").ToolParserManager
    except ModuleNotFoundError:
        return  # it says so itself, later
    known = sorted(manager.list_registered())
    parser = spec["tool_parser"]
    if parser is None or parser in known:
        return
    if spec["options"].get("tool_parser"):
        near = difflib.get_close_matches(parser, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"It has: {', '.join(known)}."
        child.failed(f"this vLLM has no tool parser {parser!r}", hint=hint)
    _say(f"this vLLM has no tool parser {parser!r}: tools are off")
    spec.update(tool_parser=None, tools=False)


def _arguments(spec: dict[str, Any], port: int, *, cpu: bool) -> list[str]:
    options = spec["options"]
    given: dict[str, Any] = {
        "model": spec["model"],
        "served-model-name": spec["name"],
        "host": "127.0.0.1",
        "port": port,
        "max-num-seqs": spec["slots"],
        "max-logprobs": _MAX_LOGPROBS,
        "allowed-origins": "[]",
        "uvicorn-log-level": "warning",
        "max-model-len": spec["context"] or None,
        "dtype": options.get("dtype"),
        "tensor-parallel-size": options.get("tensor_parallel"),
        "gpu-memory-utilization": options.get("gpu_memory_utilization"),
        "max-num-batched-tokens": options.get("max_batched_tokens"),
        "quantization": options.get("quantization"),
        "tool-call-parser": spec["tool_parser"],
        # A GPU has nothing better to do with its memory, and vLLM takes what there is.
        "kv-cache-memory-bytes": spec["kv_cache_bytes"] if cpu or "kv_cache_gib" in options else None,
    }
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    arguments += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--disable-fastapi-docs"]
    if spec["tool_parser"]:
        # Without it vLLM refuses calls that are demanded as well.
        arguments.append("--enable-auto-tool-choice")
    # On the CPU compiling takes minutes at every start, and a C++ compiler.
    if options.get("enforce_eager", cpu):
        arguments.append("--enforce-eager")
        # vLLM compiles some functions all the same, when they are first called: all requests would wait 12 s for the
        # first one that wants log-probabilities.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    return arguments


def _run(child: ModuleType, serving: Any) -> None:
    """Run the server until it ends, or is asked to. Signals are not its own: Ctrl-C is left to the parent, and SIGTERM
    may come twice, also when the loop that handled it is closed."""
    import asyncio

    base: Any = asyncio.SelectorEventLoop
    try:
        base = importlib.import_module("uvloop").Loop
    except ImportError:
        traceback.print_exc()
    ways: list[Callable[[], object]] = []

    class Loop(base):  # type: ignore[misc]  # which of the two is known when it runs
        def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
            if sig == signal.SIGTERM:
                ways.append(lambda: self.call_soon_threadsafe(callback, *args))

    def end() -> None:
        child.wait_for_parent()
        if not ways:
            os._exit(0)  # it still loads, and has nothing to put away
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has just ended
            ways[-1]()

    signal.signal(signal.SIGTERM, lambda *_: child._asked_to_end.set())
    threading.Thread(target=end, name="end", daemon=True).start()
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(serving)


def _announce(child: ModuleType, spec: dict[str, Any], port: int, version: str, device: str) -> None:
    """Wait until the server answers, look at what it has become, and report."""
    while _get(port, "/health")[0] != 200:
        time.sleep(0.1)
    served = json.loads(_get(port, "/v1/models")[1])["data"][0]
    generates = _exists(port, "/v1/completions")
    child.ready(
        host="127.0.0.1",
        port=port,
        context=int(served.get("max_model_len") or 0),
        slots=int(spec["slots"]),
        version=version,
        capabilities={
            "chat": generates and bool(spec["chat"]),
            "completions": generates,
            "streaming": generates,
            "embeddings": _exists(port, "/v1/embeddings"),
            "logprobs": generates,
            "json_schema": generates,
            "tools": generates and bool(spec["tools"]),
            "several": True,
        },
        device=device,
        tool_parser=spec["tool_parser"] or "",
        kv_cache_bytes=int(spec["kv_cache_bytes"]) if generates else 0,
    )


def _get(port: int, path: str, method: str = "GET", body: str | None = None) -> tuple[int, bytes]:
    """Status and body; 0 where nobody answers yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _exists(port: int, path: str) -> bool:
    """Whether the server has the route: it has those that the model can serve. An empty body is refused by all."""
    return _get(port, path, "POST", "{}")[0] not in (0, 404, 405)


def _fail(child: ModuleType, error: BaseException) -> None:
    """Report why the model did not come up, or end with an error if it had."""
    text = str(error)
    if "root cause above" not in text:  # its own lines would push those out of sight
        traceback.print_exception(error)
    if child._reported.is_set():
        _leave(1)
    child.failed(
        "vLLM cannot serve this model",
        hint="`press logs` shows all it says; docs/vllm.md lists the options of a deployment.",
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _leave(status: int) -> NoReturn:
    """End the process: the scheduler is gone, and threads of native libraries may not end by themselves."""
    logging.shutdown()
    sys.stderr.flush()
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os._exit(status)


if __name__ == "__main__":
    main()
