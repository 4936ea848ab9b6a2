"""Versions as one file: the same bits each time, and verified whole before anything of it is registered."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from pressroom.kernel import DigestMismatchError, NotFoundError, StoreError, StoreFullError, WeightsError, Workspace
from pressroom.registry import (
    Archive,
    ArchiveError,
    Figure,
    FileEntry,
    Registry,
    Version,
    export_archive,
    import_archive,
    manifest_digest,
    verify,
    verify_archive,
)

from .weights import config_bytes, gguf_bytes, pickle_bytes, safetensors_bytes

MAGIC = b"PRESSROOM-ARCHIVE 1\n"


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Workspace]:
    """Another workspace, on a machine without a network."""
    root = tmp_path / "there"
    root.mkdir()
    with Workspace.open(root, environ={}) as opened:
        yield opened


def make(registry: Registry, name: str, files: dict[str, bytes], **more: Any) -> Version:
    entries = []
    for path, content in files.items():
        blob = registry.store.put([content])
        entries.append(FileEntry(path=path, blob=blob.digest, size=blob.size))
    return registry.register(name, entries, **more)


@pytest.fixture
def family(registry: Registry) -> list[Version]:
    shared = config_bytes()
    base = make(
        registry,
        "org/base",
        {"model.safetensors": safetensors_bytes(seed=1, elements=5000), "config.json": shared},
        source="hf:org/base@abc",
        metadata={"parameters": 5000, "header": {"ü": 1.5}},
        figures=[Figure(name="perplexity", value=20.5, how="so", where="here", at=3.0), Figure(name="n", value="x")],
    )
    make(registry, "tuned", {"model.gguf": gguf_bytes(seed=9)})
    tuned = make(
        registry,
        "tuned",
        {"model.safetensors": safetensors_bytes(seed=2, elements=5000), "config.json": shared, "empty.txt": b""},
        kind="fine-tune",
        parent=base.digest,
        tags={"team": "search"},
        description="Tuned.\nTwice.",
        run="r1",
    )
    registry.promote(tuned.ref, "production")
    return [base, tuned]


def test_everything_but_aliases_travels(
    workspace: Workspace, there: Workspace, family: list[Version], tmp_path: Path
) -> None:
    base, _ = family
    archive = export_archive(workspace, ["tuned:production"], tmp_path / "usb", with_parents=True)
    assert archive.path.name == "tuned-2+1.pressroom" and archive.path.stat().st_size == archive.size
    assert [version.name for version in archive.versions] == ["org/base", "tuned"]
    verified = verify_archive(there, archive.path)
    assert (verified.digest, verified.size, verified.blobs) == (archive.digest, archive.size, archive.blobs)
    assert Registry(there).list() == []
    done = import_archive(there, archive.path)
    assert [(one.here.number, one.known) for one in done] == [(1, False), (2, False)]
    registry = Registry(there)
    for version in family:
        found = registry.get(version.ref)
        for field in ("digest", "kind", "files", "parent", "source", "created", "metadata", "sheet", "tags"):
            assert getattr(found, field) == getattr(version, field), field
        assert (found.description, found.run, found.aliases) == (version.description, version.run, ())
        for entry in version.files:
            registry.store.verify(entry.blob)
    assert registry.get("tuned").parent == base.digest
    assert list(there.path("tmp").iterdir()) == []


def test_the_same_versions_make_the_same_file(workspace: Workspace, family: list[Version], tmp_path: Path) -> None:
    one = export_archive(workspace, ["tuned:2", "org/base"], tmp_path / "a")
    other = export_archive(workspace, ["org/base:1", "tuned", "tuned:2"], tmp_path / "b")
    assert one.path.name == "org--base-1+1.pressroom"
    assert one.path.read_bytes() == other.path.read_bytes()
    content = one.path.read_bytes()
    assert blake3(content[:-32]).digest() == content[-32:] and one.digest == content[-32:].hex()
    assert export_archive(workspace, ["org/base"], tmp_path / "a").path.name == "org--base-1.pressroom"
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_what_is_here_is_not_written_again(
    workspace: Workspace, there: Workspace, family: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export_archive(workspace, ["org/base"], tmp_path)
    both = export_archive(workspace, ["tuned"], tmp_path, with_parents=True)
    import_archive(there, first.path)
    put: list[str | None] = []
    kept = type(Registry(there).store).put

    def counted(self: Any, chunks: Any, *, expected: str | None = None, size: int | None = None) -> Any:
        put.append(expected)
        return kept(self, chunks, expected=expected, size=size)

    monkeypatch.setattr(type(Registry(there).store), "put", counted)
    done = import_archive(there, both.path)
    assert [one.known for one in done] == [True, False]
    new = {entry.blob for entry in family[1].files} - {entry.blob for entry in family[0].files}
    assert sorted(str(digest) for digest in put) == sorted(new)
    put.clear()
    assert [one.known for one in import_archive(there, both.path)] == [True, True]
    assert put == []
    assert [(version.name, version.number) for version in Registry(there).list()] == [("org/base", 1), ("tuned", 2)]


def test_numbers_are_kept_where_they_are_free(
    workspace: Workspace, there: Workspace, family: list[Version], tmp_path: Path
) -> None:
    registry = Registry(there)
    make(registry, "tuned", {"model.gguf": gguf_bytes(seed=7)})
    make(registry, "tuned", {"model.gguf": gguf_bytes(seed=8)})
    registry.delete("tuned:2")
    done = import_archive(there, export_archive(workspace, ["tuned"], tmp_path).path)
    assert (done[0].there.number, done[0].here.number) == (2, 3)


def test_what_was_measured_here_stays(
    workspace: Workspace, there: Workspace, family: list[Version], tmp_path: Path
) -> None:
    archive = export_archive(workspace, ["org/base", "tuned:2"], tmp_path)
    import_archive(there, archive.path)
    registry = Registry(there)
    registry.add_figures("org/base", [Figure(name="perplexity", value=1.0)])
    registry.annotate("tuned", tags={"team": "ours"}, description="Ours.")
    Registry(workspace).add_figures("org/base", [Figure(name="new", value=2.0), Figure(name="perplexity", value=3.0)])
    Registry(workspace).annotate("tuned:2", tags={"more": "yes"})
    import_archive(there, export_archive(workspace, ["org/base", "tuned:2"], tmp_path).path)
    assert {figure.name: figure.value for figure in registry.get("org/base").sheet} == {
        "perplexity": 1.0,
        "n": "x",
        "new": 2.0,
    }
    assert registry.get("tuned").tags == {"team": "ours", "more": "yes"}
    assert registry.get("tuned").description == "Ours."


@pytest.fixture
def content(workspace: Workspace, family: list[Version], tmp_path: Path) -> bytes:
    return export_archive(workspace, ["org/base", "tuned:2"], tmp_path / "made").path.read_bytes()


def assert_refused(there: Workspace, path: Path, content: bytes, *errors: type[Exception]) -> str:
    path.write_bytes(content)
    for act in (verify_archive, import_archive):
        with pytest.raises(errors or ArchiveError) as caught:
            act(there, path)
    registry = Registry(there)
    assert registry.list() == [] and list(registry.store.list()) == []
    assert list(there.path("tmp").iterdir()) == []
    return str(caught.value)


def test_cut_anywhere_it_is_refused(there: Workspace, content: bytes, tmp_path: Path) -> None:
    for length in [0, 1, 19, 20, 27, 28, 29, 500, len(content) - 33, len(content) - 32, len(content) - 1]:
        assert_refused(there, tmp_path / "cut", content[:length])
    assert "something was put behind" in assert_refused(there, tmp_path / "cut", content + b"x")


def test_altered_anywhere_it_is_refused(there: Workspace, content: bytes, tmp_path: Path) -> None:
    chance = random.Random(3)
    for position in [0, 20, 27, len(content) - 1, *(chance.randrange(len(content)) for _ in range(40))]:
        altered = bytearray(content)
        altered[position] ^= 1 << chance.randrange(8)
        assert_refused(there, tmp_path / "altered", bytes(altered))


def rebuilt(content: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The archive with another header, and every digest over it right."""
    length = struct.unpack_from("<Q", content, len(MAGIC))[0]
    start = len(MAGIC) + 8
    header = json.loads(content[start : start + length])
    header = change(header) or header
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = MAGIC + struct.pack("<Q", len(raw)) + raw + content[start + length : -32]
    return body + blake3(body).digest()


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def change(header: dict[str, Any]) -> None:
        found: Any = header
        for step in way:
            found = found[step]
        found[last] = value

    return change


def _manifest(header: dict[str, Any], path: str) -> None:
    """A path, with a digest of the version that fits."""
    version = header["versions"][0]
    version["files"][0]["path"] = path
    version["digest"] = manifest_digest(FileEntry(**entry) for entry in version["files"])


def test_a_header_that_lies_is_refused(there: Workspace, content: bytes, tmp_path: Path) -> None:
    import_archive_of = tmp_path / "hostile"
    lies: list[Callable[[dict[str, Any]], Any]] = [
        _set("format", 2),
        _set("format", "1"),
        _set("more", 1),
        _set("versions", []),
        _set("versions", {}),
        _set("blobs", []),
        _set("blobs", 0, "size", -1),
        _set("blobs", 0, "size", 1 << 63),
        _set("blobs", 0, "size", 1.0),
        _set("blobs", 0, "digest", "blake3-" + "0" * 64),
        _set("blobs", 0, "digest", "../../etc/passwd"),
        _set("versions", 0, "name", "../up"),
        _set("versions", 0, "name", "a b"),
        _set("versions", 0, "number", 0),
        _set("versions", 0, "number", True),
        _set("versions", 0, "number", 1 << 40),
        _set("versions", 0, "digest", "sha256-" + "0" * 64),
        _set("versions", 0, "kind", "best"),
        _set("versions", 0, "parent", "x"),
        _set("versions", 0, "parent", 3),
        _set("versions", 0, "created", "now"),
        _set("versions", 0, "created", -1),
        _set("versions", 0, "metadata", []),
        _set("versions", 0, "metadata", {"a": float(10**308) * 10}),
        _set("versions", 0, "metadata", {"a": json.loads("[" * 100 + "]" * 100)}),
        _set("versions", 0, "source", "\x1b[2J"),
        _set("versions", 0, "source", "\ud800"),
        _set("versions", 0, "source", "x" * 10_000),
        _set("versions", 0, "tags", {"a=b": "c"}),
        _set("versions", 0, "tags", {"a": 3}),
        _set("versions", 0, "description", "a\0b"),
        _set("versions", 0, "run", "x" * 1000),
        _set("versions", 0, "files", []),
        _set("versions", 0, "sheet", [{"name": "x"}]),
        _set("versions", 0, "sheet", 0, "value", None),
        _set("versions", 0, "sheet", 0, "value", True),
        _set("versions", 0, "sheet", 0, "at", "x"),
        _set("versions", 0, "sheet", 0, "unit", "x" * 41),
        lambda header: header["versions"].append(header["versions"][0]),
        lambda header: header["blobs"].append(header["blobs"][0]),
        lambda header: header["versions"][0]["files"].append(header["versions"][0]["files"][0]),
        lambda header: header["versions"][0].pop("run") and None,
        lambda header: _manifest(header, "../../etc/passwd"),
        lambda header: _manifest(header, "/etc/passwd"),
        lambda header: _manifest(header, "MODEL.safetensors"),
        lambda header: _manifest(header, "a\\b"),
        lambda header: b"[" * 100_000,
        lambda header: b'{"format": NaN}',
        lambda header: b'{"format": 1, "format": 1}',
        lambda header: json.dumps(header).encode().replace(b"1.5", b"1e999"),
        lambda header: b"\xff\xfe",
        lambda header: [header],
    ]
    for number, lie in enumerate(lies):
        try:
            assert_refused(there, import_archive_of, rebuilt(content, lie))
        except BaseException as error:
            raise AssertionError(f"lie {number} was believed") from error
    # The same header unchanged is believed: it is the lies that were refused.
    import_archive_of.write_bytes(rebuilt(content, lambda header: None))
    assert len(import_archive(there, import_archive_of)) == 2


def test_a_header_larger_than_anything_is_not_read(there: Workspace, content: bytes, tmp_path: Path) -> None:
    for length in (1 << 63, (1 << 64) - 1, (64 << 20) + 1, len(content)):
        assert_refused(there, tmp_path / "large", MAGIC + struct.pack("<Q", length) + content[28:])


def test_pickles_and_weights_that_lie_are_refused(
    registry: Registry, workspace: Workspace, there: Workspace, tmp_path: Path
) -> None:
    hostile = {
        "model.bin": safetensors_bytes()[:8] + b"x" * 100,
        "notes.txt": pickle_bytes(),
        "model.safetensors": safetensors_bytes()[:-1],
        "model.gguf": gguf_bytes()[:40],
    }
    for number, (path, content) in enumerate(hostile.items()):
        make(registry, f"bad{number}", {path: content, "config.json": config_bytes()})
        archive = export_archive(workspace, [f"bad{number}"], tmp_path / "made")
        assert_refused(there, tmp_path / "hostile", archive.path.read_bytes(), WeightsError)


def test_what_is_no_archive(there: Workspace, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        import_archive(there, tmp_path / "nothing.pressroom")
    for path in (tmp_path, tmp_path / "fifo"):
        if path.name == "fifo":
            os.mkfifo(path)
            writer = threading.Thread(target=path.write_bytes, args=(b"",))
            writer.start()
        with pytest.raises(ArchiveError):
            import_archive(there, path)
    writer.join()
    assert_refused(there, tmp_path / "text", b"just some text, longer than the head of an archive")


@pytest.mark.parametrize("small", [True, False])
def test_importing_mends_what_is_damaged(workspace: Workspace, registry: Registry, tmp_path: Path, small: bool) -> None:
    """Files that the store keeps as they are, and files that it keeps in parts."""
    size = 1000 if small else 1 << 20
    header = b'{"w": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]}}' % (size, size)
    content = len(header).to_bytes(8, "little") + header + random.Random(1).randbytes(size)
    version = make(registry, "m", {"model.safetensors": content})
    archive = export_archive(workspace, ["m"], tmp_path / "out")
    store = workspace.dir / "store"
    files = [path for path in store.rglob("*") if path.is_file() and not path.name.startswith("index.db")]
    largest = max(files, key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(damaged)
    assert not verify(workspace).sound
    (done,) = import_archive(workspace, archive.path)
    assert done.known and done.here == version
    assert verify(workspace).sound


def test_damaged_bytes_are_not_exported(workspace: Workspace, registry: Registry, tmp_path: Path) -> None:
    version = make(registry, "m", {"model.gguf": gguf_bytes()})

    class Damaged:
        def __getattr__(self, name: str) -> Any:
            return getattr(registry.store, name)

        def open(self, digest: str) -> Any:
            import io

            return io.BytesIO(gguf_bytes(seed=3))

    from pressroom.registry import transfer

    class Opened(Registry):
        def __init__(self, workspace: Workspace) -> None:
            super().__init__(workspace)
            self.store = Damaged()  # type: ignore[assignment]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "Registry", Opened)
        with pytest.raises(DigestMismatchError):
            export_archive(workspace, ["m"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    registry.store.delete(version.files[0].blob)
    with pytest.raises(NotFoundError):
        export_archive(workspace, ["m"], tmp_path / "out")
    with pytest.raises(NotFoundError):
        export_archive(workspace, ["m", "n"], tmp_path / "out")


def test_a_disk_that_fills_leaves_nothing(
    workspace: Workspace, family: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pressroom.registry.transfer.os.fsync", full)
        with pytest.raises(StoreFullError):
            export_archive(workspace, ["tuned"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError):
        export_archive(workspace, ["tuned"], tmp_path / "file")


def test_what_a_killed_export_left_goes_with_the_next(
    workspace: Workspace, family: list[Version], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tuned-2.419430499.partial").write_bytes(b"half")
    running = tmp_path / "out" / f".tuned-2.{os.getppid()}.partial"
    running.write_bytes(b"of somebody who still writes")
    archive = export_archive(workspace, ["tuned"], tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted([running, archive.path])


def test_collected_meanwhile_nothing_is_lost(
    workspace: Workspace, there: Workspace, family: list[Version], tmp_path: Path
) -> None:
    archive = export_archive(workspace, ["tuned"], tmp_path, with_parents=True)
    stop = threading.Event()

    def collect() -> None:
        while not stop.is_set():
            Registry(there).collect()

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for _ in range(5):
            for one in import_archive(there, archive.path):
                assert Registry(there).holds(one.here)
            Registry(there).delete("tuned")
            Registry(there).delete("org/base")
    finally:
        stop.set()
        thread.join()


def test_the_archive_says_what_it_is(workspace: Workspace, family: list[Version], tmp_path: Path) -> None:
    """For whoever reads the format from its page alone."""
    archive = export_archive(workspace, ["org/base"], tmp_path)
    assert isinstance(archive, Archive)
    content = archive.path.read_bytes()
    length = struct.unpack_from("<Q", content, len(MAGIC))[0]
    header = json.loads(content[28 : 28 + length])
    position = 28 + length
    for blob in header["blobs"]:
        assert "blake3-" + blake3(content[position : position + blob["size"]]).hexdigest() == blob["digest"]
        position += blob["size"]
    assert position == len(content) - 32


@pytest.mark.slow
def test_memory_stays_small_whatever_the_size(
    registry: Registry, workspace: Workspace, there: Workspace, tmp_path: Path
) -> None:
    make(registry, "m", {"model.safetensors": safetensors_bytes(seed=5, elements=40_000_000)})
    tracemalloc.start()
    try:
        archive = export_archive(workspace, ["m"], tmp_path / "usb")
        verify_archive(there, archive.path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert archive.size > 160_000_000 and peak < 40_000_000
