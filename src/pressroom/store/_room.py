"""How much room a disk has."""

from __future__ import annotations

import errno
import os
from pathlib import Path

#: What writing to a full disk, or past a quota, fails with.
FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(path: Path) -> int:
    """Of the disk that the path lies on, or would lie on. Raises OSError."""
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
