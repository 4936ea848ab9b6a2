"""Files of weights given back: into memory, into a file, as a stream, or tensor by tensor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store._tensors import Raw, Tensors, mapped
from pressroom.store.family import _queries as queries
from pressroom.store.family._decoding import Decoder
from pressroom.store.family._manifests import Manifest
from pressroom.store.family._objects import StoredTensor
from pressroom.store.family._parts import Parts
from pressroom.store.family._pieces import Pieces
from pressroom.store.family._predicting import Predictions
from pressroom.store.family._rebuilding import read_manifest
from pressroom.store.formats import TensorInfo
from pressroom.store.places.base import Place

T = TypeVar("T")


class Piece(NamedTuple):
    """Some bytes of a file: block `number` of the tensor `id`."""

    offset: int
    length: int
    id: bytes
    number: int


class Reader:
    """One held file in parts, as it is now: what a sweep takes later is still read where the place is a directory.

    `fast`: what comes out is not held against its digest where all stored bytes were held against their checks.
    `strict`: both are, and nothing is taken from where it lies raw in a local file besides.
    """

    def __init__(self, parts: Parts, manifest: Manifest, *, fast: bool = False, strict: bool = False) -> None:
        self.manifest = manifest
        self.threads = parts.workers
        self.decoder = decoder_for(
            parts,
            parts.index.file_tensors(manifest),
            besides=manifest.digest,
            fast=fast,
            strict=strict,
        )

    def jobs(self) -> Iterator[Piece]:
        """The blocks of the file, front to back."""
        for offset, _, number in self.manifest.parts():
            if number is not None and self.manifest.tensors[number].nbytes:
                tensor = self.decoder.tensor(self.manifest.ids[number])
                if tensor.nbytes != self.manifest.tensors[number].nbytes:
                    raise StoreError(
                        f"the manifest of {self.manifest.digest} and the index disagree on a tensor",
                        hint="Run `press verify`.",
                    )
                for block in range(tensor.count):
                    start, length = tensor.span(block)
                    yield Piece(offset + start, length, tensor.id, block)

    def together(self, jobs: Iterable[Piece]) -> Iterator[Piece]:
        """The same, those by recipes from one tensor behind each other: it is decoded once then. A quantised file has
        the scales of all tensors first."""
        groups: dict[bytes, list[Piece]] = {}
        for job in jobs:
            tensor = self.decoder.tensor(job.id)
            groups.setdefault(job.id if tensor.recipe is None else tensor.parents[0], []).append(job)
        return chain.from_iterable(groups.values())

    def gaps(self) -> Iterator[tuple[int, bytes]]:
        """The bytes outside of tensors, with their offsets."""
        at = 0
        for offset, length, number in self.manifest.parts():
            if number is None:
                yield offset, self.manifest.gaps[at : at + length]
                at += length

    def into(self, out: memoryview) -> None:
        """The whole file into a buffer of its size."""
        for offset, data in self.gaps():
            out[offset : offset + len(data)] = data
        run(
            self.together(self.jobs()),
            lambda job: self.decoder.block(job.id, job.number, out[job.offset : job.offset + job.length]),
            self.threads,
        )

    def into_file(self, fd: int) -> None:
        """The whole file into an open file. Raises OSError where it cannot be written.

        Not through a map of it: on a disk that fills up, that ends the process.
        """
        for offset, data in self.gaps():
            write_at(fd, memoryview(data), offset)
        own = threading.local()

        def work(job: Piece) -> None:
            buffer = own.__dict__.setdefault("buffer", bytearray())
            if len(buffer) < job.length:
                buffer = own.buffer = bytearray(job.length)
            view = memoryview(buffer)[: job.length]
            self.decoder.block(job.id, job.number, view)
            write_at(fd, view, job.offset)

        run(self.together(self.jobs()), work, self.threads)

    def tensors(self, *, checked: bool = False) -> Tensors:
        """The tensors by name: mapped where their bytes lie as they are, else decoded when asked for.

        `checked`: none is mapped, and every block is held against its digest.
        """
        ids = {t.name: identity for t, identity in zip(self.manifest.tensors, self.manifest.ids, strict=True)}

        def load(info: TensorInfo) -> Raw:
            if not info.nbytes:
                return np.empty(0, np.uint8)
            return whole_tensor(self.decoder, ids[info.name], self.threads, checked=checked)

        return Tensors(self.manifest.tensors, load)


def decoder_for(
    parts: Parts,
    tensors: Mapping[bytes, StoredTensor],
    *,
    besides: str = "",
    fast: bool = False,
    strict: bool = False,
) -> Decoder:
    """A decoder of these tensors. Unless `strict`, it takes what lies raw in the cache or a local piece from there."""
    pieces = Pieces(parts.place)
    pieces.hold(dict.fromkeys(segment.piece for tensor in tensors.values() for segment in tensor.segments))
    return Decoder(
        tensors,
        pieces,
        fast=fast,
        strict=strict,
        shortcut=(lambda _: None) if strict else _Shortcuts(parts, tensors, besides),
        predicted=Predictions(),
        renew=parts.index.again,
    )


def whole_tensor(decoder: Decoder, identity: bytes, threads: int, *, checked: bool) -> Raw:
    """All bytes of a tensor: unless `checked`, a view into a mapped file where they lie as they are."""
    tensor = decoder.tensor(identity)
    direct = None if checked else decoder.shortcut(identity)
    if direct is not None:
        return np.frombuffer(direct, np.uint8)
    out = np.empty(tensor.nbytes, np.uint8)
    view = out.data

    def work(number: int) -> None:
        start, length = tensor.span(number)
        decoder.block(identity, number, view[start : start + length])

    run(iter(range(tensor.count)), work, threads)
    return out


class _Shortcuts:
    """Where tensors lie raw in a local file: in a rebuilt one, or in one that is stored whole."""

    def __init__(self, parts: Parts, tensors: Mapping[bytes, StoredTensor], besides: str) -> None:
        self._found: dict[bytes, tuple[Path, int, int]] = {}
        self._maps: dict[Path, memoryview | None] = {}
        self._lock = threading.Lock()
        for identity, tensor in tensors.items():
            if tensor.segments and tensor.segments[0].plain:
                try:
                    path = parts.place.local(tensor.segments[0].piece)
                except NotFoundError:
                    continue
                if path is not None:
                    self._found[identity] = (path, tensor.segments[0].offset, tensor.nbytes)
        rest = [identity for identity in tensors if identity not in self._found]
        cached = [digest for digest in parts.cache.held() if digest != besides] if rest else []
        if cached:
            self._add_cached(parts, rest, cached)

    def _add_cached(self, parts: Parts, ids: list[bytes], cached: list[str]) -> None:
        held: dict[str, tuple[Path, Manifest | None]] = {}
        for identity, at in parts.index.read(lambda c: queries.places_of(c, ids, cached)).items():
            if at.digest not in held:
                held[at.digest] = parts.cache.directory / at.digest, _cached_manifest(parts, at.digest)
            path, manifest = held[at.digest]
            if manifest is not None and at.position < len(manifest.tensors) and manifest.ids[at.position] == identity:
                info = manifest.tensors[at.position]
                self._found[identity] = (path, info.offset, info.nbytes)

    def __call__(self, identity: bytes) -> memoryview | None:
        found = self._found.get(identity)
        if found is None:
            return None
        path, offset, length = found
        with self._lock:
            if path not in self._maps:
                try:
                    self._maps[path] = mapped(path, offset + length)
                except (StoreError, NotFoundError):  # it is stored, too
                    self._maps[path] = None
            whole = self._maps[path]
        return None if whole is None or len(whole) < offset + length else whole[offset : offset + length]


def _cached_manifest(parts: Parts, digest: str) -> Manifest | None:
    """The manifest of a file that lies in the cache, as long as it must be."""
    try:
        manifest = read_manifest(parts.place, digest)
    except (NotFoundError, StoreError):
        return None
    return manifest if parts.cache.find(digest, manifest.size, use=False) is not None else None


def run(jobs: Iterator[T], work: Callable[[T], None], threads: int) -> None:
    """Do all jobs on so many threads, in about their order. The first error ends it and comes through."""
    if threads <= 1:
        for job in jobs:
            work(job)
        return
    lock = threading.Lock()
    failed = threading.Event()

    def loop() -> None:
        while not failed.is_set():
            try:
                with lock:
                    job = next(jobs, None)
                if job is None:
                    return
                work(job)
            except BaseException:
                failed.set()
                raise

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(loop) for _ in range(threads)]:
            future.result()


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """All of the data at that place of the file. Raises OSError."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def copy_piece(place: Place, name: str, size: int, fd: int, threads: int) -> None:
    """A piece of a place without files into an open file."""
    step = 4 << 20
    ranges: Iterable[int] = range(0, size, step)

    def work(offset: int) -> None:
        write_at(fd, memoryview(place.read(name, offset, min(step, size - offset))), offset)

    run(iter(ranges), work, threads)
