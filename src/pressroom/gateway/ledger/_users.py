"""Whom requests are for, as a keyed hash: rows of one user can be told to belong together, and nobody's name is kept.

The key is in `.pressroom/ledger/salt`, which only its owner may read, and not in the database: whoever has a copy of
the database cannot try out names.
"""

from __future__ import annotations

import errno
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from pressroom.kernel import StoreFullError, WorkspaceError

#: The name of the file with the key.
SALT = "salt"
_BYTES = 32
# Of 64 hexadecimal digits: 128 bits, which no two users share.
_DIGITS = 32
_REMEMBERED = 8_192
_LONG = 256


class Users:
    """Hashes of users, the latest of them from memory."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        #: For a look-up on the hot path; `hashed` fills it.
        self.known: dict[str, str] = {}

    def hashed(self, user: str) -> str:
        """What the ledger calls this user; '' for none."""
        if not user:
            return ""
        digest = hmac.digest(self._salt, user.encode("utf-8", "surrogatepass"), "sha256").hex()[:_DIGITS]
        if len(user) <= _LONG:
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            self.known[user] = digest
        return digest

    def keep(self, root: Path) -> None:
        """Put the key back where it was, if there is none there now. Raises OSError."""
        if not (root / SALT).exists():
            _make(root / SALT, self._salt)


def known_users(root: Path) -> Users | None:
    """As `open_users`, for whoever only reads: None where there is no key, and none is made."""
    return open_users(root) if (root / SALT).exists() else None


def open_users(root: Path) -> Users:
    """With the key in this folder; made where there is none, by one process of those that start at once.

    Raises:
        WorkspaceError: the key cannot be read or written, or is not one.
    """
    path = root / SALT
    try:
        if not path.exists():
            _make(path, secrets.token_bytes(_BYTES))
        salt = path.read_bytes()
    except OSError as error:
        kind = StoreFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else WorkspaceError
        raise kind(
            f"{path} cannot be {'written' if kind is StoreFullError else 'used'}: {error.strerror}",
            hint="Make room." if kind is StoreFullError else "Let the user that runs the server own it, with mode 600.",
        ) from error
    if len(salt) != _BYTES:
        raise WorkspaceError(
            f"{path} has {len(salt)} bytes, and {_BYTES} are expected",
            hint="Put a backup in its place. Without one, remove it: users of rows so far are then not found any more.",
        )
    return Users(salt)


def _make(path: Path, salt: bytes) -> None:
    partial = path.with_name(f".{SALT}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, salt)
            os.fsync(fd)
        finally:
            os.close(fd)
        with suppress(FileExistsError):  # another process was first
            os.link(partial, path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
