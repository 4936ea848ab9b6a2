"""The file an engine's stderr goes to: appended by the engine itself, kept below a size by its parent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

LIMIT_BYTES = 8 * 2**20
_TAIL_BYTES = 16 * 1024


class EngineLog:
    """Open for one start of an engine. The engine writes to `fd` without the parent in between, so the last lines are
    there however either of them ends. Without a path the lines are kept in a temporary file until `close`.
    """

    def __init__(self, path: Path | None, *, limit: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit
        if path is None:
            made, name = tempfile.mkstemp(prefix="pressroom-engine-", suffix=".log")
            os.close(made)
            self.fd = os.open(name, os.O_RDWR | os.O_APPEND)
            Path(name).unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self.trim()
        self._start = os.fstat(self.fd).st_size

    def trim(self) -> None:
        """Keep the file below its limit: what is over moves to `<name>.1`, replacing what was there."""
        size = os.fstat(self.fd).st_size
        if size <= self._limit:
            return
        if self._path is not None:
            kept = os.pread(self.fd, self._limit, max(0, size - self._limit))
            with open(self._path.with_name(self._path.name + ".1"), "wb", opener=_private) as older:
                older.write(kept)
        # The writer appends (O_APPEND), so it goes on at the new end.
        os.ftruncate(self.fd, 0)
        self._start = 0

    def tail(self, lines: int = 15) -> list[str]:
        """The last lines written since this start."""
        size = os.fstat(self.fd).st_size
        begin = max(self._start, size - _TAIL_BYTES)
        text = os.pread(self.fd, max(0, size - begin), begin).decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def close(self) -> None:
        os.close(self.fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
