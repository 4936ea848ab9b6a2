"""Files that whoever types a command asks for: there whole or not at all, and a failure says what to do."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from pressroom.kernel import StoreError, StoreFullError


def write_text(path: Path, text: str) -> None:
    """Write the file in UTF-8, in place of what was there.

    Raises:
        StoreError: it cannot be written; what was there stays. StoreFullError where the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():  # /dev/stdout and the like
            path.write_text(text, encoding="utf-8")
            return
        # What a link names is replaced, and not the link.
        target = path.resolve()
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def check_writable(path: Path) -> None:
    """Say now what `write_text` would say after a long measurement.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not path.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> StoreError:
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(
            f"{folder} has no room for {path.name}", hint="Make room, or name a file on another disk.", path=str(path)
        )
    if not folder.exists():
        return StoreError(
            f"{path} cannot be written: there is no folder {folder}",
            hint=f"Make it (mkdir -p {folder}), or name a file in one that is there.",
            path=str(path),
        )
    return StoreError(
        f"{path} cannot be written: {error.strerror}",
        hint="Name a file in a folder that you may write to.",
        path=str(path),
    )
