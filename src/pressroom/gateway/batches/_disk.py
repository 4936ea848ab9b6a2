"""What a disk refuses, said plainly."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pressroom.kernel import StoreError, StoreFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Long enough for a thread that waits for the interpreter to get it, short enough not to count.
_BREATH_S = 0.0001


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into one that says what to do.

    Raises:
        StoreFullError, StoreError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(
                f"{path.parent} has no room for {path.name}",
                hint="Make room there (`press rm REF` and `press gc`, or files that are not needed), and try again.",
                path=str(path),
            ) from error
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="Check that the directory is there and may be written.",
            path=str(path),
        ) from error


def breathe() -> None:
    """Let the other threads run. Long work in a thread would else keep each of them waiting for 5 ms at a time, the
    gateway's event loop with them."""
    time.sleep(_BREATH_S)
