"""Files and folders of this machine."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest

from pressroom.kernel import (
    MalformedWeightsError,
    Note,
    PressroomError,
    RefError,
    Settings,
    SourceError,
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


@pytest.mark.parametrize("name", ["m\n.gguf", "m\\x.gguf", "c:m.gguf", "m\x9b.gguf", "m\udcff.gguf"])
def test_names_that_cannot_be_kept(workspace: Workspace, tmp_path: Path, name: str) -> None:
    try:
        (tmp_path / name).write_bytes(gguf_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(SourceError, match="cannot be the name") as caught:
        pull(workspace, str(tmp_path / name))
    assert "Rename" in caught.value.hint and caught.value.message.isprintable()
    assert nothing_kept(workspace)


def test_a_folder_whose_name_is_not_text(workspace: Workspace, tmp_path: Path) -> None:
    try:
        folder = model_folder(tmp_path / "m\udcff")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(SourceError, match="UTF-8"):
        pull(workspace, str(folder))
    assert nothing_kept(workspace)


def test_names_that_differ_by_case_alone(workspace: Workspace, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    for one, other in (("straße.json", "STRASSE.json"), ("\u00e9.json", "e\u0301.json")):
        (folder / one).write_text("{}", encoding="utf-8")
        if (folder / other).exists():
            pytest.skip("case does not count on this file system")
        (folder / other).write_text("{}", encoding="utf-8")
        with pytest.raises(SourceError, match="case"):
            pull(workspace, str(folder))
        (folder / one).unlink()
        (folder / other).unlink()
    assert nothing_kept(workspace)


def test_names_are_shown_without_what_a_terminal_obeys(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a\x1b[2J.gguf").write_bytes(gguf_bytes())
    (folder / "b.gguf").write_bytes(gguf_bytes(seed=1))
    with pytest.raises(SourceError, match="2 GGUF") as caught:
        pull(workspace, str(folder))
    assert "#a\\x1b[2J.gguf" in caught.value.hint and caught.value.hint.isprintable()
    (folder / "b.gguf").unlink()
    (folder / "a\x1b[2J.gguf").rename(folder / "a\x1b[2J.pkl")
    (folder / "model.safetensors").write_bytes(safetensors_bytes())
    said = notes(workspace)
    pull(workspace, str(folder))
    assert any("a\\x1b[2J.pkl" in text for text in said) and all(text.isprintable() for text in said)


def test_links_that_lead_nowhere(workspace: Workspace, tmp_path: Path) -> None:
    said = notes(workspace)
    folder = model_folder(tmp_path / "m")
    (folder / "gone.json").symlink_to("not-here.json")
    assert pull(workspace, str(folder)).number == 1
    assert any("gone.json" in text for text in said)
    with pytest.raises(SourceError, match="nowhere"):
        pull(workspace, str(folder / "gone.json"))
    (folder / "loop.json").symlink_to("loop.json")
    with pytest.raises(SourceError, match="nowhere"):
        pull(workspace, str(folder / "loop.json"))


def test_links_that_lead_to_each_other(workspace: Workspace, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "one").symlink_to("other")
    (folder / "other").symlink_to("one")
    try:
        version = pull(workspace, str(folder))
    except SourceError as error:
        # Before Python 3.13 resolving them is an error.
        assert error.hint and nothing_kept(workspace)
    else:
        assert len(version.files) == 3


def test_what_is_no_file_in_a_folder_is_not_opened(workspace: Workspace, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "directory.json").mkdir()
    (folder / "itself").symlink_to(folder)
    version = pull(workspace, str(folder))
    assert {f.path for f in version.files} == {"model.safetensors", "config.json", "tokenizer_config.json"}


def test_files_that_may_not_be_read(workspace: Workspace, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "model.safetensors").chmod(0)
    if os.access(folder / "model.safetensors", os.R_OK):
        pytest.skip("root may read everything")
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(PressroomError, match="cannot be read") as caught:
            pull(workspace, str(source))
        assert caught.value.hint
    assert nothing_kept(workspace)


@pytest.mark.parametrize("folder", [False, True])
def test_a_changed_file_is_read_also_offline(workspace: Workspace, tmp_path: Path, folder: bool) -> None:
    """What is on this machine needs no network, and looking whether it changed costs nothing."""
    place = model_folder(tmp_path / "m") if folder else tmp_path / "m.gguf"
    file = place / "model.safetensors" if folder else place

    def write(seed: int) -> None:
        file.write_bytes(safetensors_bytes(seed=seed) if folder else gguf_bytes(seed=seed))

    write(1)
    assert pull(workspace, str(place)).number == 1
    write(2)
    assert pull(workspace, str(place), refresh=False).number == 2
    write(3)
    offline = Workspace(workspace.root, Settings(offline=True))
    try:
        assert pull(offline, str(place)).number == 3
        assert pull(offline, str(place)).number == 3
        # What is gone is still here under its number.
        place.rename(tmp_path / "elsewhere")
        assert pull(offline, str(place)).number == 3
    finally:
        offline.close()


@pytest.mark.parametrize(
    "source",
    [
        "ftp://me:secret@example.org/m.gguf",
        "git+https://me:secret@example.org/m",
        "pypi:m @ https://me:secret@example.org/m.whl",
        "hf:https://me:secret@example.org/m",
        "https:me:secret@example.org/m",
        "https://me:se/secret@example.org/m",
        "https://me:secret@example.org/m#",
    ],
)
def test_a_password_is_not_repeated(workspace: Workspace, source: str) -> None:
    with pytest.raises(SourceError) as caught:
        pull(workspace, source)
    assert "secret" not in str(caught.value.as_dict()) and caught.value.hint
    assert nothing_kept(workspace)
