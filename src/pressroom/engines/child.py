"""What an engine's own process does to be a good child: read its spec, report once, end with its parent.

    spec = child.read_spec()
    try:
        server = ...                                  # load the model, open a port
    except ...:
        child.failed("the model cannot be loaded", hint="…")
    child.ready(host="127.0.0.1", port=server.port)
    child.wait_for_parent()

The spec is JSON in `argv[1]`. The report is one line of JSON on the stdout the process was started with; everything
else that is printed goes to stderr, which the parent keeps. The parent holds the other end of stdin: when that closes,
it is gone (however it ended) or asks this process to end. Standard library only, so that starting stays cheap.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import threading
from typing import Any, NoReturn

# Seconds between being asked to end and being ended by the kernel, should a native library hang on its way out.
_LAST_MOMENTS_S = 5

_report_fd: int | None = None
_watched = False
_reported = threading.Event()
_asked_to_end = threading.Event()


def read_spec() -> dict[str, Any]:
    """The spec this process was started with: name, model (a path or None), context, slots, threads, options.

    From here on stdout belongs to the report, Ctrl-C is left to the parent, and the process ends at once if the parent
    does before `ready`.
    """
    _prepare()
    try:
        spec = json.loads(sys.argv[1])
    except (IndexError, ValueError):
        failed("the engine was started without its spec", hint="It is started by Pressroom, not by hand.")
    if not isinstance(spec, dict):
        failed("the engine's spec is not a JSON object", hint="It is started by Pressroom, not by hand.")
    return spec


def ready(
    *,
    host: str,
    port: int,
    context: int = 0,
    slots: int = 0,
    version: str = "",
    capabilities: dict[str, bool] | None = None,
    **details: Any,
) -> None:
    """Say that the model answers at `host`:`port`. `context` in tokens a request, `slots` in requests at once,
    `details` JSON-ready; `capabilities` (the fields of `engines.base.Capabilities`) only where they depend on the
    model."""
    _prepare()
    _reported.set()
    _die_at_hangup(False)
    report = {"host": host, "port": port, "context": context, "slots": slots, "version": version, "details": details}
    _report({"ready": True, **report, "capabilities": capabilities})


def failed(message: str, hint: str = "") -> NoReturn:
    """Say why the model does not come up, and end the process with exit status 1."""
    _prepare()
    _reported.set()
    _report({"ready": False, "message": message, "hint": hint})
    sys.stderr.flush()
    # Not sys.exit: threads of a half-started native library may hang or abort on the way out.
    os._exit(1)


def wait_for_parent() -> None:
    """Block until the parent is gone or asks to end (stdin closed, or SIGTERM); what is left to do must be quick."""
    _prepare()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: _asked_to_end.set())
    _asked_to_end.wait()
    # Nobody may be left to kill this process. The default action of SIGALRM ends it, whatever holds the interpreter.
    signal.alarm(_LAST_MOMENTS_S)


def _prepare() -> None:
    """Take stdout away from whoever prints, and start to watch the parent. Once."""
    global _report_fd, _watched
    if _watched:
        return
    _watched = True
    _report_fd = os.dup(1)
    os.dup2(2, 1)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_at_hangup(True)
    threading.Thread(target=_watch_stdin, name="parent-watch", daemon=True).start()


def _die_at_hangup(on: bool) -> None:
    """Let the kernel end this process when the parent's end of stdin closes.

    While a native library loads a model it may hold the interpreter for minutes, and no thread of Python notices
    anything. Linux sends SIGIO, whose default action is to end the process; elsewhere the thread has to do.
    """
    if sys.platform != "linux":
        return
    try:
        flags = fcntl.fcntl(0, fcntl.F_GETFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)
    except OSError:
        return  # stdin is closed or of a kind that cannot; the thread sees that
    poller = select.poll()
    poller.register(0, 0)
    if on and any(state & select.POLLHUP for _, state in poller.poll(0)):
        os._exit(1)  # it closed before the kernel was asked to tell


def _watch_stdin() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # stdin was not open: there is no parent to wait for
    _asked_to_end.set()
    if not _reported.is_set():
        os._exit(1)


def _report(record: dict[str, Any]) -> None:
    global _report_fd
    assert _report_fd is not None, "an engine reports once"
    fd, _report_fd = _report_fd, None
    line = json.dumps(record).encode() + b"\n"
    try:
        while line:
            line = line[os.write(fd, line) :]
    except BrokenPipeError:
        pass  # the parent is gone; the watch on stdin ends this process
    finally:
        os.close(fd)
