"""What a publisher declares of a file, and holding the file against it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pressroom.kernel import DigestMismatchError

_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """`size` in bytes, `sha256` of the content, `git` the name that git gives it (SHA-1 over its length and itself);
    each None where the publisher does not say it. `text` is one that always means the same bytes, "" for none."""

    size: int | None = None
    sha256: str | None = None
    git: str | None = None
    text: str = ""

    @property
    def says_which(self) -> bool:
        """Whether it tells the right bytes from all others."""
        return self.sha256 is not None or self.git is not None


def check(local: Path, declared: Declared, *, what: str, read: Callable[[int], None] = lambda _: None) -> None:
    """Hold a file against what was declared; `read` is told of each number of bytes read.

    Raises:
        DigestMismatchError: it is another.
    """
    size = local.stat().st_size
    if declared.size is not None and size != declared.size:
        raise mismatch(what, f"has {size} bytes", f"{declared.size} are declared")
    if declared.says_which:
        with local.open("rb") as file:
            found = digest_of(file, size, git=declared.sha256 is None, read=read)
        if found != (declared.sha256 or declared.git):
            kind = "SHA-256" if declared.sha256 else "the git name"
            raise mismatch(what, f"has {kind} {found}", f"{declared.sha256 or declared.git} is declared")


def digest_of(file: BinaryIO, size: int, *, git: bool, read: Callable[[int], None] = lambda _: None) -> str:
    """The SHA-256 of what is left of a file, or with `git` what git calls it if it has `size` bytes; in hexadecimal."""
    # SHA-1 is what git names files by; the hub gives nothing better for small ones.
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        read(len(chunk))
    return digest.hexdigest()


def is_page(local: Path) -> bool:
    """Whether a server sent a page for people where a file was asked for."""
    with local.open("rb") as file:
        head = file.read(512).lstrip().lower()
    return head.startswith((b"<!doctype html", b"<html"))


def mismatch(what: str, found: str, declared: str) -> DigestMismatchError:
    return DigestMismatchError(
        f"{what} {found}, and {declared}",
        hint="It was altered on its way, or the digest is another file's. Do not use it before you know which.",
    )
