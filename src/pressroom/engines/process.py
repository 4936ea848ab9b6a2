"""An engine as a child process: started, watched and ended here; what runs inside is the backend's.

The child's side of the agreement is `pressroom.engines.child`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import psutil

from pressroom.engines._log import EngineLog
from pressroom.engines.base import Capabilities, Endpoint, Engine, EngineSpec, Health, State
from pressroom.kernel import EngineStartError, MissingDependencyError, Workspace

_HEALTH_TIMEOUT_S = 1.0
# A process that closed its stdout without a report is about to end, or never will.
_ENDING_S = 1.0
# Errors that say something of this process and nothing of the engine: an engine is not ended for them.
_OWN_TROUBLE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# What a process that ended had started gets this long to end by itself.
_LEFT_BEHIND_S = 3.0
# More than any honest report; a child that writes more than this without a line end is not one of ours.
_REPORT_LIMIT = 1 << 20


class ProcessEngine(Engine):
    """Runs the module of the backend as `python -m <module> <spec as JSON>`; override `command` to run another program.

    The same engine may be started again after `stop` or after it died.
    """

    #: Libraries the child imports, and the extra that installs them ('' where Pressroom itself does).
    requires: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: EngineLog | None = None
        self._endpoint: Endpoint | None = None
        self._stopped = False
        self._peak = 0

    @classmethod
    def unusable(cls, workspace: Workspace) -> str:
        missing = cls._missing()
        return f"{missing} is not installed ({cls._install()})" if missing else ""

    @classmethod
    def _missing(cls) -> str:
        return next((name for name in cls.requires if importlib.util.find_spec(name) is None), "")

    @classmethod
    def _install(cls) -> str:
        return f"pip install 'pressroom[{cls.extra}]'" if cls.extra else "pip install pressroom"

    def command(self) -> list[str]:
        """The program and its arguments, without the spec, which is appended."""
        # -P: a file in the current directory must not stand in for a module of the engine.
        return [sys.executable, "-P", "-m", type(self).__module__]

    def child_spec(self) -> dict[str, Any]:
        """What the child is told, JSON-ready."""
        spec = self.spec
        return {
            "name": spec.name,
            "model": None if spec.model is None else str(spec.model.absolute()),
            "context": spec.context,
            "slots": spec.slots,
            "threads": spec.threads,
            "options": spec.options,
        }

    def cause(self, lines: list[str]) -> str:
        """What the last lines the child wrote say about its failure, in a few words; '' where they do not."""
        return ""

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> Endpoint:
        missing = self._missing()
        if missing:
            raise MissingDependencyError(
                f"the engine needs the library {missing!r}, which is not installed",
                hint=f"Install it with: {self._install()}",
                library=missing,
            )
        with self._starting:
            process = self._spawn()
            assert process.stdout is not None
            try:
                report = self._wait_for_report(process, time.monotonic() + self.spec.start_timeout_s)
                if not report.get("ready"):
                    reason = str(report.get("message") or "it gave no reason")
                    raise self._start_error(reason, str(report.get("hint", "")), reported=True)
                self._endpoint = Endpoint(
                    host=str(report["host"]),
                    port=int(report["port"]),
                    pid=process.pid,
                    context=int(report.get("context", 0)),
                    slots=int(report.get("slots", 0)),
                    version=str(report.get("version", "")),
                    capabilities=Capabilities(**report["capabilities"]) if report.get("capabilities") else None,
                    details=dict(report.get("details") or {}),
                )
            except BaseException:
                self._end(process)
                raise
            finally:
                process.stdout.close()
            return self._endpoint

    def health(self) -> Health:
        process, endpoint = self._process, self._endpoint
        if process is None:
            return Health(state=State.STOPPED)
        if process.poll() is not None:
            return Health(state=State.DEAD, detail=_ending(process.returncode), peak_memory_bytes=self._peak)
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk must not end the watch over the engine
                self._log.trim()
        memory, peak = _memory(process.pid)
        self._peak = max(self._peak, peak, memory)
        if endpoint is None:
            return Health(state=State.STARTING, memory_bytes=memory, peak_memory_bytes=self._peak)
        trouble = _ask(endpoint.host, endpoint.port)
        return Health(
            state=State.UNRESPONSIVE if trouble else State.READY,
            detail=trouble,
            memory_bytes=memory,
            peak_memory_bytes=self._peak,
        )

    def stop(self) -> None:
        # A start under way in another thread fails once its process is gone, and gives the lock back.
        while not self._starting.acquire(timeout=0.02):
            self._stopped = True
            if self._process is not None:
                self._end(self._process)
        try:
            if self._process is not None:
                self._end(self._process)
            self._clear()
        finally:
            self._starting.release()

    def _clear(self) -> None:
        self._process = self._endpoint = None
        self._stopped = False
        self._peak = 0
        if self._log is not None:
            self._log.close()
            self._log = None

    def _spawn(self) -> subprocess.Popen[bytes]:
        if self.pid is not None:
            raise EngineStartError("the engine runs already", hint="Stop it first.", pid=self.pid)
        arguments = [*self.command(), json.dumps(self.child_spec())]
        self._clear()
        try:
            self._log = EngineLog(self.spec.log)
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log.fd,
                # A session of its own: Ctrl-C in the terminal reaches the parent, which decides.
                start_new_session=True,
            )
        except OSError as error:
            raise EngineStartError(
                f"the engine for {self.spec.name!r} cannot be started: {error}",
                hint="Check the disk, and the limits of this user (`ulimit -a`).",
            ) from error
        return self._process

    def _wait_for_report(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        """The report of the child. Raises EngineStartError when there is none."""
        assert process.stdout is not None
        received = b""
        while b"\n" not in received:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._start_error(
                    f"it was not ready after {self.spec.start_timeout_s:g} s",
                    "Give it longer with the setting engines.start_timeout_s.",
                )
            poller = select.poll()
            poller.register(process.stdout, select.POLLIN)
            if not poller.poll(min(remaining, 60.0) * 1000):
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            received += chunk
            if not chunk or len(received) > _REPORT_LIMIT:
                return self._died(process, deadline)
        try:
            report = json.loads(received.partition(b"\n")[0])
            assert isinstance(report, dict)
        except (ValueError, AssertionError):
            raise self._start_error("it wrote something else than its report to stdout", "Report this.") from None
        return report

    def _died(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        try:
            process.wait(timeout=max(0.0, min(_ENDING_S, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            raise self._start_error("it closed its stdout without a report", "Report this.") from None
        if self._stopped:
            raise self._start_error("it was stopped while it started", "")
        hint = "Its last lines say why." if self._lines() else ""
        if process.returncode == -signal.SIGKILL:
            hint = "The system may have run out of memory: take a smaller model, or less context or fewer slots."
        raise self._start_error(_ending(process.returncode), hint)

    def _start_error(self, reason: str, hint: str, **facts: Any) -> EngineStartError:
        lines = self._lines()
        cause = self.cause(lines)
        if cause:
            reason = f"{reason}: {cause}"
        kept = f" All it wrote is in {self.spec.log}." if self.spec.log else ""
        return EngineStartError(
            f"the engine for {self.spec.name!r} did not start: {reason}",
            hint=(hint + kept).strip(),
            reason=reason,
            lines=lines,
            log=str(self.spec.log or ""),
            **facts,
        )

    def _lines(self) -> list[str]:
        return self._log.tail() if self._log is not None else []

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Make sure the process is gone, and all it started in its session: ask, wait, then kill."""
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=self.spec.stop_timeout_s)
            except subprocess.TimeoutExpired:
                # Not reaped yet, so the number is still its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        _end_session(process.pid)


def _end_session(leader: int) -> None:
    """End what a leader that is dead and reaped left in its session. Most of it is about to end by itself, and may have
    something to put away first, such as shared memory."""
    deadline = time.monotonic() + _LEFT_BEHIND_S
    killed = False
    while _session(leader):
        if not killed and time.monotonic() >= deadline:
            killed = True
            # A number is not given away while a session has it, so this is still the session of that leader.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(leader, signal.SIGKILL)
        elif time.monotonic() >= deadline + _LEFT_BEHIND_S:
            return  # in the middle of a system call that does not end; nothing more can be done to it
        time.sleep(0.01)


def _session(leader: int) -> bool:
    """Whether anything but zombies is left of the session of a dead leader. Two system calls where nothing is."""
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        return False
    try:
        if psutil.Process(leader).status() != psutil.STATUS_ZOMBIE:
            return False  # the number is somebody else's by now: nothing was left
    except psutil.Error:
        pass
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(OSError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == leader:
                return True
    return False


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"the process ended with exit status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    return f"the process was ended by signal {name}"


def _ask(host: str, port: int) -> str:
    """GET /health; '' when the answer is 200, else what is wrong. Never takes longer than the limit. Where this process
    has no means to ask, nothing is known to be wrong."""
    deadline = time.monotonic() + _HEALTH_TIMEOUT_S
    received = b""
    try:
        with socket.create_connection((host, port), timeout=_HEALTH_TIMEOUT_S) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
            while b"\r\n" not in received and len(received) < 1024:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = connection.recv(1024)
                if not chunk:
                    break
                received += chunk
    except TimeoutError:
        return f"no answer to /health in {_HEALTH_TIMEOUT_S:g} s"
    except OSError as error:
        if error.errno in _OWN_TROUBLE:
            return ""
        return f"no answer to /health: {error.strerror or error}"
    status = received.split(b" ", 2)[1:2]
    return "" if status == [b"200"] else f"/health answered {b' '.join(status).decode(errors='replace') or 'nothing'}"


def _memory(pid: int) -> tuple[int, int]:
    """Resident bytes now, and the most so far where the system keeps that (Linux), of a process and all it started;
    zeros where not known. What they share counts for each."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except (psutil.Error, OSError):  # an OSError where this process has no descriptors left
        return 0, 0
    total = most = 0
    for each in family:
        try:
            now = int(each.memory_info().rss)
        except (psutil.Error, OSError):
            continue  # it has just ended
        total += now
        most += max(now, _most_resident(each.pid))
    return total, most


def _most_resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
