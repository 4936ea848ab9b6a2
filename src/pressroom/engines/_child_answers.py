"""What a process of ours says that computes something apart from the others: JSON, a line at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from pressroom.kernel import EngineError

_LAST_LINES = 15


def child_answers(
    module: str, task: dict[str, Any], *, what: str, timeout_s: float, pass_fds: Sequence[int] = ()
) -> Iterator[dict[str, Any]]:
    """Run `python -m module TASK` and yield what it says, line by line; it is ended when the iterator is.

    Raises:
        EngineError: `what` (the beginning of a sentence), and why: it said so, died, or took longer than `timeout_s`.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, json.dumps(task)],
            pass_fds=pass_fds,
            stdin=subprocess.PIPE,  # its end is the end of the other process, however this one ends
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
        )
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        guard = threading.Timer(timeout_s, end)
        guard.daemon = True
        guard.start()
        try:
            for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # it died in the middle of it
                answer = json.loads(line)
                if "error" in answer:
                    raise _failed(what, answer["error"], answer["hint"], log)
                yield answer
            if process.wait() != 0:
                took_long = f"it took longer than {timeout_s:g} s"
                ended = f"the process ended with status {process.returncode}"
                raise _failed(what, took_long if late.is_set() else ended, "", log)
        finally:
            guard.cancel()
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def _failed(what: str, reason: str, hint: str, log: BinaryIO) -> EngineError:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
    return EngineError(f"{what}: {reason}", hint=hint or "Its last lines say why.", lines=lines)
