"""Archives of every kind, hostile ones first."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections import namedtuple
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from pressroom.kernel import PressroomError, SourceError, StoreFullError, UnsafeWeightsError, Workspace
from pressroom.registry import pull

from .test_path_source import nothing_kept
from .weights import gguf_bytes, model_folder, pickle_bytes, safetensors_bytes


def zipped(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tarfile.TarInfo, mode: str = "w", content: bytes = b"") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_honest_archives(workspace: Workspace, tmp_path: Path, ending: str) -> None:
    folder = model_folder(tmp_path / "m")
    path = tmp_path / f"tiny.{ending}"
    if ending == "zip":
        zipped(path, {f"m/{file.name}": file.read_bytes() for file in folder.iterdir()})
    else:
        with tarfile.open(path, f"w:{ending.removeprefix('tar').removeprefix('.')}") as archive:  # type: ignore[call-overload]
            archive.add(folder, "./m")
    version = pull(workspace, str(path))
    assert version.name == "tiny"
    assert {f.path for f in version.files} == {file.name for file in folder.iterdir()}
    chosen = pull(workspace, f"{path}#m/config.json", as_data=True)
    assert (chosen.name, chosen.kind, chosen.files[0].path) == ("config", "data", "config.json")
    with pytest.raises(SourceError) as caught:
        pull(workspace, f"{path}#m/confg.json", as_data=True)
    assert "m/config.json" in caught.value.hint


@pytest.mark.parametrize("name", ["../m.gguf", "/m.gguf", "a/../../m.gguf", "C:/m.gguf", "C:m.gguf", "a\\..\\m.gguf"])
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_members_that_climb_out(workspace: Workspace, tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"m.{ending}"
    if ending == "zip":
        zipped(path, {"ok.gguf": gguf_bytes(), name: gguf_bytes(seed=1)})
    else:
        members = (tarfile.TarInfo("ok.gguf"), tarfile.TarInfo(name))
        tarred(path, *members, mode="w:gz" if ending == "tar.gz" else "w", content=gguf_bytes())
    with pytest.raises(SourceError) as caught:
        pull(workspace, f"{path}#ok.gguf")
    assert "ok.gguf" not in caught.value.message
    assert nothing_kept(workspace) and {p.name for p in tmp_path.iterdir()} == {"workspace", path.name}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices(workspace: Workspace, tmp_path: Path, kind: bytes) -> None:
    bad = tarfile.TarInfo("bad.gguf")
    bad.type, bad.linkname = kind, "/etc/passwd"
    path = tarred(tmp_path / "m.tar", tarfile.TarInfo("ok.gguf"), bad, content=gguf_bytes())
    with pytest.raises(SourceError, match="link or a device"):
        pull(workspace, f"{path}#ok.gguf")
    assert nothing_kept(workspace)


def test_zip_links_and_locked_members(workspace: Workspace, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("bad.gguf")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr("ok.gguf", gguf_bytes())
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match=r"bad\.gguf.*link"):
        pull(workspace, f"{tmp_path / 'link.zip'}#ok.gguf")
    raw = bytearray(zipped(tmp_path / "locked.zip", {"m.gguf": gguf_bytes()}).read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(raw)
    with pytest.raises(SourceError, match="encrypted"):
        pull(workspace, str(tmp_path / "locked.zip"))
    assert nothing_kept(workspace)


@pytest.mark.parametrize("second", ["m.gguf", "./m.gguf", "a//m.gguf"])
def test_members_of_one_name(workspace: Workspace, tmp_path: Path, second: str) -> None:
    first = "a/m.gguf" if second.startswith("a") else "m.gguf"
    for ending in ("zip", "tar"):
        path = tmp_path / f"m.{ending}"
        if ending == "zip":
            with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning) if second == first else nullcontext():
                archive.writestr(first, gguf_bytes())
                archive.writestr(second, gguf_bytes(seed=1))
        else:
            tarred(path, tarfile.TarInfo(first), tarfile.TarInfo(second), content=gguf_bytes())
        with pytest.raises(SourceError, match="twice"):
            pull(workspace, f"{path}#{first}")
    assert nothing_kept(workspace)


def test_a_member_longer_than_it_says(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.gguf", gguf_bytes(elements=1 << 16))
    raw = bytearray(path.read_bytes())
    for header, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = raw.index(header) + place
        raw[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(PressroomError):
        pull(workspace, str(path))
    assert nothing_kept(workspace)


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_damaged_archives_never_end_in_anything_but_our_errors(
    workspace: Workspace, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"m.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m.gguf", os.urandom(3000))
    else:
        mode = f"w:{ending.removeprefix('tar').removeprefix('.')}"
        tarred(path, tarfile.TarInfo("m.gguf"), mode=mode, content=os.urandom(3000))
    whole = path.read_bytes()
    for step in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:step])
        with pytest.raises(PressroomError):
            pull(workspace, str(path))
        altered = bytearray(whole)
        altered[step] ^= 0xFF
        path.write_bytes(altered)
        with pytest.raises(PressroomError):  # the member is noise: no altered form of it is a GGUF file
            pull(workspace, str(path))
    assert nothing_kept(workspace)


def test_a_bomb_is_not_unpacked(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    path = zipped(tmp_path / "m.zip", {"m.gguf": b"\0" * 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 999_999))
    with pytest.raises(StoreFullError):
        pull(workspace, str(path))
    assert nothing_kept(workspace)


def test_several_models_in_one_archive(workspace: Workspace, tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.zip", {"a.gguf": gguf_bytes(), "b.gguf": gguf_bytes(seed=1)})
    with pytest.raises(SourceError) as caught:
        pull(workspace, str(path))
    assert "#a.gguf" in caught.value.hint and "#b.gguf" in caught.value.hint
    assert pull(workspace, f"{path}#b.gguf").name == "b"


def test_a_tar_that_ends_with_a_zip_is_a_tar(workspace: Workspace, tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"inner.gguf": gguf_bytes(seed=1)}).read_bytes()
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        for name, content in (("outer.gguf", gguf_bytes()), ("last.zip", inner)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert [f.path for f in pull(workspace, str(tmp_path / "m.tar")).files] == ["outer.gguf"]


def test_an_archive_in_an_archive_is_not_opened(workspace: Workspace, tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"m.gguf": gguf_bytes()}).read_bytes()
    outer = zipped(tmp_path / "outer.zip", {"inner.zip": inner})
    with pytest.raises(SourceError, match="no weights"):
        pull(workspace, str(outer))
    for as_data in (False, True):
        with pytest.raises(PressroomError, match="zip"):
            pull(workspace, f"{outer}#inner.zip", as_data=as_data)
    assert nothing_kept(workspace)


def test_pickles_in_archives(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    zipped(tmp_path / "m.zip", {"m.gguf": pickle_bytes()})
    tarred(tmp_path / "m.tar.gz", tarfile.TarInfo("m.safetensors"), mode="w:gz", content=pickle_bytes())
    for source in ("m.zip", "m.tar.gz"):
        with pytest.raises(UnsafeWeightsError):
            pull(workspace, source)
    assert nothing_kept(workspace) and not (tmp_path / "executed").exists()


def test_an_archive_that_grows_beyond_measure(workspace: Workspace, tmp_path: Path) -> None:
    member = tarfile.TarInfo("m.gguf")
    member.size = 1 << 40
    (tmp_path / "m.tar").write_bytes(member.tobuf() + b"\0" * 10240)
    with gzip.open(tmp_path / "m.tar.gz", "wb") as file:
        file.write(member.tobuf() + b"\0" * 10240)
    for name in ("m.tar", "m.tar.gz"):
        with pytest.raises(SourceError, match="200 times"):
            pull(workspace, str(tmp_path / name))
    assert nothing_kept(workspace)


def test_an_archive_of_too_many(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pressroom.registry.sources._archive._MOST_MEMBERS", 3)
    for count, fits in ((3, True), (4, False)):
        path = zipped(tmp_path / f"{count}.zip", {f"{n}.gguf": gguf_bytes(seed=n) for n in range(count)})
        if fits:
            assert pull(workspace, f"{path}#0.gguf").number == 1
        else:
            with pytest.raises(SourceError, match="more than 3"):
                pull(workspace, f"{path}#0.gguf")


def long_header(kind: bytes, length: int) -> bytes:
    head = tarfile.TarInfo("long")
    head.type, head.size = kind, length
    last = tarfile.TarInfo("m.gguf")
    last.size = len(gguf_bytes())
    return head.tobuf() + b" " * length + last.tobuf() + gguf_bytes().ljust(512, b"\0") + b"\0" * 1024


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_made_to_fill_the_memory(workspace: Workspace, tmp_path: Path, kind: bytes) -> None:
    length = 48 << 20
    with gzip.open(tmp_path / "m.tar.gz", "wb", compresslevel=1) as file:
        file.write(long_header(kind, length))
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="table of contents"):
            pull(workspace, str(tmp_path / "m.tar.gz"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < length // 2
    assert nothing_kept(workspace)


def test_long_headers_that_are_honest(workspace: Workspace, tmp_path: Path) -> None:
    deep = "/".join(["a-long-name-of-a-folder"] * 20)
    with tarfile.open(tmp_path / "m.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for n in range(3):
            member = tarfile.TarInfo(f"{deep}/{n}.gguf")
            member.size = len(gguf_bytes())
            member.pax_headers = {"LIBARCHIVE.xattr.user.note": "x" * 90_000}
            archive.addfile(member, io.BytesIO(gguf_bytes(seed=n)))
    assert pull(workspace, f"{tmp_path / 'm.tar'}#{deep}/2.gguf").name == "2"


def test_headers_upon_headers(workspace: Workspace, tmp_path: Path) -> None:
    many = {f"field{n}": "x" for n in range(200)}
    with tarfile.open(tmp_path / "fields.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=many) as archive:
        archive.addfile(tarfile.TarInfo("m.gguf"))
    with pytest.raises(SourceError, match="fields"):
        pull(workspace, str(tmp_path / "fields.tar"))
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 6
    chain = (head.tobuf() + b"6 a=b\n".ljust(512, b"\0")) * 5000
    (tmp_path / "chain.tar").write_bytes(chain + tarfile.TarInfo("m.gguf").tobuf() + b"\0" * 1024)
    with pytest.raises(SourceError, match="cannot be read"):
        pull(workspace, str(tmp_path / "chain.tar"))
    assert nothing_kept(workspace)


def test_a_zip_whose_table_is_made_to_fill_the_memory(workspace: Workspace, tmp_path: Path) -> None:
    row = b"PK\1\2".ljust(46, b"\0")
    count = (17 << 20) // len(row)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(row), 30, 0)
    (tmp_path / "m.zip").write_bytes(b"PK\3\4".ljust(30, b"\0") + row * count + end)
    with pytest.raises(SourceError, match="table of contents"):
        pull(workspace, str(tmp_path / "m.zip"))
    assert nothing_kept(workspace)


@pytest.mark.parametrize("name", ["m" * 300 + ".gguf", "m\udcff.gguf"])
def test_members_whose_names_cannot_be_kept(workspace: Workspace, tmp_path: Path, name: str) -> None:
    path = tarred(tmp_path / "m.tar", tarfile.TarInfo(name), tarfile.TarInfo("other.gguf"), content=gguf_bytes())
    with pytest.raises(SourceError, match="cannot be the name"):
        pull(workspace, f"{path}#{name}")
    assert nothing_kept(workspace)
    # They are in nobody's way.
    assert pull(workspace, f"{path}#other.gguf").number == 1


def test_members_that_differ_by_case_alone(workspace: Workspace, tmp_path: Path) -> None:
    members = {"model.safetensors": safetensors_bytes(), "config.json": b"{}", "CONFIG.JSON": b"{}"}
    with pytest.raises(SourceError, match="case"):
        pull(workspace, str(zipped(tmp_path / "m.zip", members)))
    assert nothing_kept(workspace)
