"""Where the key of a vendor comes from, and how it stays out of everything that is said."""

from __future__ import annotations

import logging
import os
import re
import stat
import urllib.parse
from pathlib import Path

from pressroom.engines._vendor.options import LIKE_KEYS

_log = logging.getLogger(__name__)

_FORM = re.compile(r"[\x21-\x7e]{1,4096}")
_MOST_BYTES = 64 << 10
#: Shorter ones are placeholders (`none`, `EMPTY`): taking them out of texts would mangle words.
_SECRET_FROM = 8


class KeyProblem(Exception):
    """There is no key to be used. The text never has it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Key:
    """A key, and what it was before: both are taken out of texts. `current` is '' where none is sent."""

    def __init__(self, key: str = "") -> None:
        self._known: list[str] = []
        self._key = ""
        self._take(key)

    def current(self) -> str:
        """The key to send now."""
        return self._key

    def scrubbed(self, text: str) -> str:
        """The text without the key, and without what looks like one."""
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, "[key]")
        return LIKE_KEYS.sub("[key]", text)

    def without(self, data: bytes) -> bytes:
        """Bytes of an answer without the key; nothing else of them is touched."""
        for secret in self._known:
            if (raw := secret.encode()) in data:
                data = data.replace(raw, b"[key]")
        return data

    def _take(self, key: str) -> None:
        if key == self._key:
            return
        self._key = key
        if len(key) >= _SECRET_FROM:
            forms = {key, urllib.parse.quote(key, safe="")}
            # The last few: a vendor may speak of the one before while it is replaced.
            self._known = sorted(forms, key=len, reverse=True) + self._known[:6]


class KeyInFile(Key):
    """A key in a file that only its owner reads; read again when the file changes, so that it can be replaced while
    the engine runs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._complaint = ""
        key, self._seen = _read(path)
        self._take(key)

    def current(self) -> str:
        try:
            found = self._path.stat()
            if _marks(found) != self._seen:
                key, self._seen = _read(self._path)
                self._take(key)
                self._complaint = ""
                _log.info("the key file changed and was read again")
        except (OSError, KeyProblem) as error:
            # Half of a replacement, or a mistake: the key that worked goes on until there is another.
            self._complain(str(error) if isinstance(error, KeyProblem) else f"{self._path}: {error.strerror}")
        return self._key

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._complaint = what
            _log.warning("the key file cannot be read again, the key from before is used: %s", what)


def from_environment(name: str) -> Key:
    """The key in a variable, which is then taken out of the environment of this process.

    Raises:
        KeyProblem: the variable is not set, or holds no key.
    """
    value = os.environ.pop(name, "").strip()
    if not value:
        raise KeyProblem(
            f"the variable {name}, which should hold the vendor's key, is not set",
            f"Set {name} where the server is started (`press serve`, `press up`, or the `press deploy` that starts "
            "it), or name another variable or a file with --option key_env=NAME or --option key_file=/PATH.",
        )
    if not _FORM.fullmatch(value):
        raise KeyProblem(f"what the variable {name} holds is not a key", "A key is one word of plain characters.")
    return Key(value)


def _read(path: Path) -> tuple[str, tuple[int, ...]]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeyProblem(f"the key file {path} is not a file", "Name a file with the key and nothing else.")
            if found.st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise KeyProblem(
                    f"the key file {path} can be read or written by everybody on this machine",
                    f"Take that away: chmod 600 {path} (in Kubernetes `defaultMode: 0400`, in Compose `mode: 0400`).",
                )
            raw = file.read(_MOST_BYTES)
    except OSError as error:
        raise KeyProblem(
            f"the key file {path} cannot be read: {error.strerror}", "Check the path and its permissions."
        ) from error
    key = raw.decode("latin-1").strip()
    if not _FORM.fullmatch(key):
        raise KeyProblem(f"the key file {path} does not hold one key", "Write the key into it, and nothing else.")
    return key, _marks(found)


def _marks(found: os.stat_result) -> tuple[int, ...]:
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode


class ScrubbingFormatter(logging.Formatter):
    """Log lines, tracebacks included, without the key."""

    def __init__(self, key: Key) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._key = key

    def format(self, record: logging.LogRecord) -> str:
        return self._key.scrubbed(super().format(record))
