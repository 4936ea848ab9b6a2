"""Files and folders of this machine, and archives of every kind, hostile ones first."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pressroom.kernel import (
    MalformedWeightsError,
    Note,
    PressroomError,
    RefError,
    SourceError,
    StoreFullError,
    UnsafeWeightsError,
    WeightsError,
    Workspace,
)
from pressroom.registry import Registry, pull, read_text

from .weights import config_bytes, gguf_bytes, model_folder, pickle_bytes, safetensors_bytes


def nothing_kept(workspace: Workspace) -> bool:
    registry = Registry(workspace)
    tmp = list(workspace.path("tmp").iterdir())
    return registry.list() == [] and list(registry.store.list()) == [] and tmp == []


def notes(workspace: Workspace) -> list[str]:
    said: list[str] = []
    workspace.events.subscribe(Note, lambda note: said.append(note.text))
    return said


def test_a_gguf_file(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "SmolLM2-135M.Q4_1.gguf"
    file.write_bytes(gguf_bytes(quantised=True))
    version = pull(workspace, str(file))
    assert (version.name, version.number, version.kind) == ("smollm2-135m.q4_1", 1, "base")
    assert [f.path for f in version.files] == [file.name]
    assert version.source == str(file)
    assert version.metadata["format"] == "gguf"
    assert version.metadata["architecture"] == "llama"
    assert version.metadata["parameters"] == 64
    assert version.metadata["context_length"] == 2048
    assert version.metadata["quantization"] == "Q4_0"
    assert version.metadata["bits_per_weight"] == pytest.approx(8 * file.stat().st_size / 64)
    assert file.read_bytes() == gguf_bytes(quantised=True)
    assert Registry(workspace).materialise(version).read_bytes() == file.read_bytes()
    assert pull(workspace, str(file)) == version
    file.write_bytes(gguf_bytes(seed=1))
    assert pull(workspace, str(file)).number == 2


def test_where_one_stands_decides_which_file(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.gguf").write_bytes(gguf_bytes(seed=n))
        monkeypatch.chdir(tmp_path / folder)
        version = pull(workspace, "model.gguf", name=folder)
        assert version.source == str(tmp_path / folder / "model.gguf")
    monkeypatch.setenv("HOME", str(tmp_path / "b"))
    assert pull(workspace, "~/model.gguf", name="b").number == 1


def test_names_that_look_like_something_else(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("odd:m.gguf", "m#1.gguf", "m (1).gguf", "größe.gguf")):
        Path(name).write_bytes(gguf_bytes(seed=n))
        assert pull(workspace, name, name="m").files[0].path == name
    Path("pypi:x y").write_bytes(gguf_bytes())
    with pytest.raises(SourceError, match="not a package"):
        pull(workspace, "pypi:x y")
    assert pull(workspace, "./pypi:x y", name="other").number == 1


def test_a_folder(workspace: Workspace, tmp_path: Path) -> None:
    said = notes(workspace)
    folder = model_folder(tmp_path / "Tiny Model")
    (folder / "pytorch_model.bin").write_bytes(pickle_bytes())
    (folder / "modeling_tiny.py").write_text("raise SystemExit", encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x", encoding="utf-8")
    version = pull(workspace, str(folder))
    assert version.name == "tiny-model"
    assert {f.path for f in version.files} == {"model.safetensors", "config.json", "tokenizer_config.json", "README.md"}
    assert version.metadata["license"] == "apache-2.0"
    assert version.metadata["parameters"] == 16
    assert any("pytorch_model.bin" in text for text in said) and any("modeling_tiny.py" in text for text in said)
    laid_out = Registry(workspace).materialise(version)
    assert (laid_out / "model.safetensors").read_bytes() == safetensors_bytes()
    assert (laid_out / "config.json").read_bytes() == config_bytes()


def test_links_inside_a_folder_are_followed_and_no_further(workspace: Workspace, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "blob").write_bytes(safetensors_bytes(seed=3))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("blob")
    assert pull(workspace, str(folder)).metadata["parameters"] == 16
    secret = tmp_path / "secret.json"
    secret.write_text("{}", encoding="utf-8")
    (folder / "special.json").symlink_to(secret)
    with pytest.raises(SourceError, match="leaves the folder"):
        pull(workspace, str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "model.pth"])
def test_a_folder_of_pickles(workspace: Workspace, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / name).write_bytes(pickle_bytes())
    (folder / "config.json").write_bytes(config_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeWeightsError) as caught:
        pull(workspace, "m")
    assert name in caught.value.message and "safetensors" in caught.value.hint
    assert not (tmp_path / "executed").exists() and nothing_kept(workspace)


@pytest.mark.parametrize(
    "name", ["x.bin", "x.pt", "x.pkl", "x.ckpt", "x.gguf", "x.safetensors", "x.zip.gguf", "x.npy", "x.pkl.gz", "x"]
)
@pytest.mark.parametrize("as_data", [False, True])
def test_pickle_in_any_dress(
    workspace: Workspace, tmp_path: Path, name: str, as_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle_bytes()
    if name == "x.zip.gguf":  # what torch.save writes, renamed
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", content)
        content = buffer.getvalue()
    if name == "x.npy":
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content
    if name.endswith(".gz"):
        content = gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeWeightsError):
        pull(workspace, name, as_data=as_data)
    assert not (tmp_path / "executed").exists() and nothing_kept(workspace)


@pytest.mark.parametrize("cut", [3, 20, 120, -1])
def test_cut_files(workspace: Workspace, tmp_path: Path, cut: int) -> None:
    for name, content in (("m.gguf", gguf_bytes()), ("m.safetensors", safetensors_bytes())):
        (tmp_path / name).write_bytes(content[:cut])
        with pytest.raises(WeightsError):
            pull(workspace, str(tmp_path / name))
    assert nothing_kept(workspace)


def test_what_is_no_weights(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "nothing.gguf").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for asked, kind in (
        ("empty", SourceError),
        ("notes.txt", MalformedWeightsError),
        ("nothing.gguf", MalformedWeightsError),
        ("pipe", SourceError),
        ("note.txt", SourceError),
        ("notes.txt#member", SourceError),
        ("notes.txt#", SourceError),
        ("~nobody-of-this-name/m.gguf", SourceError),
        ("x" * 5000, SourceError),
        ("a\0b", SourceError),
        ("", SourceError),
        ("ftp://example.org/m.gguf", SourceError),
        ("smollm2:1", SourceError),
        ("http://example.org/m.gguf", SourceError),
    ):
        source = str(tmp_path / asked) if asked and ":" not in asked and asked[0] not in "~x" else asked
        with pytest.raises(kind) as caught:
            pull(workspace, source)
        assert caught.value.hint, asked
    with pytest.raises(SourceError) as known:
        pull(workspace, "ftp://example.org/m.gguf")
    assert all(form in known.value.hint for form in ("pypi:", "hf:", "https:"))
    assert nothing_kept(workspace)


def test_bad_names_and_kinds_are_refused_before_anything_is_read(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes())
    for name in ("no name", "", "../up"):
        with pytest.raises(RefError):
            pull(workspace, str(file), name=name)
    with pytest.raises(ValueError, match="best"):
        pull(workspace, str(file), kind="best")
    assert nothing_kept(workspace)


Hostile = Callable[[Path], None]


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
            with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning) if second == first else _quiet():
                archive.writestr(first, gguf_bytes())
                archive.writestr(second, gguf_bytes(seed=1))
        else:
            tarred(path, tarfile.TarInfo(first), tarfile.TarInfo(second), content=gguf_bytes())
        with pytest.raises(SourceError, match="twice"):
            pull(workspace, f"{path}#{first}")
    assert nothing_kept(workspace)


class _quiet:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


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
    import shutil
    from collections import namedtuple

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


def test_text(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "play.md").write_text("# Act I\n**To be**, or _not_ to be\n", encoding="utf-8")
    (tmp_path / "play.txt").write_text("# Act I\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    version = pull(workspace, str(tmp_path / "play.md"), as_data=True)
    assert version.kind == "data"
    assert read_text(workspace, version) == " Act I\nTo be, or not to be\n"
    assert read_text(workspace, pull(workspace, str(tmp_path / "play.txt"), as_data=True)) == "# Act I\n"
    with pytest.raises(SourceError, match="not UTF-8"):
        read_text(workspace, pull(workspace, str(tmp_path / "latin.txt"), as_data=True))
    assert version.files[0].size == (tmp_path / "play.md").stat().st_size
