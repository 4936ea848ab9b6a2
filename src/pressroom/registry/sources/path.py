"""A path: a GGUF or safetensors file, a folder with safetensors, or a zip or tar with either."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pressroom.kernel import SourceError, did_you_mean
from pressroom.registry.sources._archive import DAMAGE, Archive, is_compressed_tar
from pressroom.registry.sources._choosing import chosen
from pressroom.registry.sources.base import Fetched, Found, Order, Source, with_member
from pressroom.store import inspect, sniff

_WEIGHTS = (".gguf", ".safetensors")
_TARRED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")


class Backend(Source):
    """Files on this machine; they are copied into the store, never moved."""

    form = "PATH"

    def exact(self, spec: str, member: str | None) -> str | None:
        return None  # the file may have changed

    def stamp(self, spec: str) -> str:
        path = Path(spec)
        digest = hashlib.sha256()
        try:
            for file in (path, *sorted(_visible(path))):
                found = file.stat() if file.exists() else file.lstat()
                digest.update(
                    os.fsencode(file) + f"\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0".encode()
                )
        except (OSError, ValueError):
            return ""
        return digest.hexdigest()

    def fetch(self, order: Order) -> Fetched:
        path = Path(order.spec)
        try:
            if path.is_dir():
                return _folder(path, order)
            if path.is_symlink() and not path.exists():
                raise SourceError(
                    f"{path} is a link that leads nowhere", hint="Name the file itself.", asked=order.spec
                )
            if not path.exists():
                siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
                raise SourceError(
                    f"there is no file or folder {path}",
                    hint=did_you_mean(path.name, siblings, otherwise="Check the path."),
                    asked=order.spec,
                )
            if not path.is_file():
                raise SourceError(f"{path} is neither a file nor a folder", hint="Name a file or a folder.")
            return local_file(path, order, origin=str(path), name=path.name)
        except (OSError, ValueError, RuntimeError) as error:
            # ValueError: a zero byte in a path. RuntimeError, before Python 3.13: links that lead to each other.
            said = error.strerror if isinstance(error, OSError) else error
            raise SourceError(
                f"{path} cannot be read: {said}", hint="Check the path and its permissions.", asked=order.spec
            ) from error


def local_file(path: Path, order: Order, *, origin: str, name: str) -> Fetched:
    """A file that lies here, opened where it is an archive. `name` is what it was called where it came from.

    Raises:
        SourceError: it is a damaged or hostile archive, or a member is asked of what is none.
        UnsafeWeightsError: it is a pickle, or an archive with one in it.
    """
    kind = sniff(path, name)
    if kind == "pickle":
        inspect(path, name=name)  # says what is wrong with it, and the safe way
    called = stem(name)
    if (kind in ("zip", "tar") and not name.lower().endswith(_WEIGHTS)) or _is_compressed_tar(path, kind, name):
        with Archive(path, name=name) as archive:
            taken, left_out = chosen(archive.members, where=name, member=order.member)
            files = archive.extract(taken, order.workdir, order.events)
        return Fetched(
            name=stem(order.member) if order.member else called,
            origin=with_member(origin, order.member),
            files=files,
            left_out=tuple(left_out),
        )
    if order.member is not None:
        raise SourceError(
            f"{name} is no archive: it has no file {order.member!r}", hint="Leave '#' and what follows out."
        )
    return Fetched(name=called, origin=origin, files=(Found(path=name, local=path),))


def stem(path: str) -> str:
    """The name of a file without its ending."""
    name = path.rpartition("/")[2]
    for ending in _TARRED:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(name).stem


def _is_compressed_tar(path: Path, kind: str, name: str) -> bool:
    if kind not in ("gzip", "bzip2", "xz"):
        return False
    try:
        return is_compressed_tar(path) or name.lower().endswith(_TARRED)
    except DAMAGE:
        return True  # opening it says what is wrong


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _folder(folder: Path, order: Order) -> Fetched:
    names, broken = [], []
    inside = folder.resolve()
    for path in _visible(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise SourceError(
                f"{path} is a link that leaves the folder",
                hint="Copy the file it points to into the folder, or name that file.",
                asked=order.spec,
            )
        if path.is_file():
            names.append(name)
        elif path.is_symlink() and not path.exists():
            broken.append((name, "it is a link that leads nowhere"))
    taken, left_out = chosen(names, where=str(folder), member=order.member)
    return Fetched(
        name=stem(order.member) if order.member else folder.name,
        origin=with_member(str(folder), order.member),
        files=tuple(Found(path=path, local=folder / name) for name, path in taken.items()),
        left_out=(*left_out, *broken),
    )
