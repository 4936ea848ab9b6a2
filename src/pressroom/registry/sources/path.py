"""A path: a GGUF or safetensors file, a folder with safetensors, or a zip or tar with either."""

from __future__ import annotations

import tarfile
from pathlib import Path

from pressroom.kernel import SourceError, did_you_mean
from pressroom.registry.sources._archive import Archive
from pressroom.registry.sources._choosing import chosen, relative
from pressroom.registry.sources.base import Fetched, Found, Order, Source
from pressroom.store import sniff


class Backend(Source):
    """Files on this machine; they are copied into the store, never moved."""

    form = "PATH"

    def pinned(self, spec: str) -> bool:
        return False  # the file may have changed

    def fetch(self, order: Order) -> Fetched:
        path = Path(order.spec).expanduser().absolute()
        if path.is_dir():
            return _folder(path, order)
        if not path.exists():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise SourceError(
                f"there is no file or folder {order.spec}",
                hint=did_you_mean(path.name, siblings, otherwise="Check the path."),
                asked=order.spec,
            )
        if not path.is_file():
            raise SourceError(f"{order.spec} is neither a file nor a folder", hint="Name a file or a folder.")
        return local_file(path, order, origin=str(path), name=path.name)


def local_file(path: Path, order: Order, *, origin: str, name: str) -> Fetched:
    """A file that lies here, opened where it is an archive. `name` is what it was called where it came from."""
    try:
        kind = sniff(path, name)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint="Check its permissions.") from error
    stem = Path(name).stem.removesuffix(".tar")
    packed = kind in ("zip", "tar") or (kind in ("gzip", "bzip2", "xz") and tarfile.is_tarfile(path))
    if packed and Path(name).suffix.lower() not in (".gguf", ".safetensors"):
        with Archive(path, name=name) as archive:
            taken, left_out = chosen(archive.members, where=name, member=order.member)
            files = archive.extract(relative(taken), order.workdir, order.events)
        member = f"#{order.member}" if order.member else ""
        called = Path(order.member).stem if order.member else stem
        return Fetched(name=called, origin=origin + member, files=files, left_out=tuple(left_out))
    if order.member is not None:
        raise SourceError(
            f"{name} is no archive: it has no file {order.member!r}", hint="Leave '#' and what follows out."
        )
    return Fetched(name=stem, origin=origin, files=(Found(path=name, local=path),))


def _folder(folder: Path, order: Order) -> Fetched:
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise SourceError(
                f"{path} is a link that leaves the folder",
                hint="Copy the file it points to into the folder, or name that file.",
                asked=order.spec,
            )
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            names.append(path.relative_to(folder).as_posix())
    taken, left_out = chosen(names, where=str(folder), member=order.member)
    member = f"#{order.member}" if order.member else ""
    return Fetched(
        name=Path(order.member).stem if order.member else folder.name,
        origin=f"{folder}{member}",
        files=tuple(Found(path=path, local=folder / name) for name, path in relative(taken).items()),
        left_out=tuple(left_out),
    )
