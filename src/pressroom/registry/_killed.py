"""What is under way beside a file that a person named: it carries the number of the process that makes it, so that what
a killed one left is known and removed by the next."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from pressroom.kernel.machine import is_running


def under_way(directory: Path, stem: str, suffix: str) -> Path:
    """The hidden name for what this process makes in the directory."""
    return directory / f".{stem}.{os.getpid()}.{suffix}"


def sweep(directory: Path, suffix: str) -> None:
    """Remove the files and folders of this suffix whose makers are gone."""
    for left in directory.glob(f".*.{suffix}"):
        found = re.fullmatch(rf"\..+\.(\d{{1,9}})\.{re.escape(suffix)}", left.name)
        if found is None or is_running(int(found[1])):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
