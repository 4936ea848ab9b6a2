"""Where the workspace is, and that it says so when it cannot be used."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest

from pressroom.kernel import LockedError, SettingsError, Workspace, WorkspaceError
from pressroom.kernel.locks import locked


def test_without_a_mark_it_is_the_directory_itself(tmp_path: Path) -> None:
    with Workspace.open(tmp_path, environ={}) as workspace:
        assert workspace.root == tmp_path
        assert workspace.dir == tmp_path / ".pressroom"
        assert workspace.dir.is_dir()


@pytest.mark.parametrize("mark", ["pressroom.toml", ".pressroom/"])
def test_it_is_found_upward(tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mark.endswith("/"):
        (tmp_path / mark).mkdir()
    else:
        (tmp_path / mark).write_text("[gateway]\nport = 9999\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    with Workspace.open(environ={}) as workspace:
        assert workspace.root == tmp_path
        assert workspace.settings.gateway.port == (8080 if mark.endswith("/") else 9999)
    assert not (below / ".pressroom").exists()


def test_the_nearest_mark_wins(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    (tmp_path / ".pressroom").mkdir()
    inner.mkdir()
    (inner / "pressroom.toml").write_text("")
    assert Workspace.open(inner, environ={}).root == inner


def test_a_file_called_like_the_directory_is_no_mark(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / ".pressroom").write_text("")
    assert Workspace.open(inner, environ={}).root == inner


def test_the_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, here = tmp_path / "chosen", tmp_path / "here"
    chosen.mkdir()
    here.mkdir()
    (here / "pressroom.toml").write_text("")
    monkeypatch.chdir(here)
    environ = {"PRESSROOM_WORKSPACE": str(chosen)}
    assert Workspace.open(environ=environ).root == chosen
    assert Workspace.open(here, environ=environ).root == here, "what the caller names comes first"
    monkeypatch.chdir(tmp_path)
    assert Workspace.open(environ={"PRESSROOM_WORKSPACE": "chosen"}).root == chosen, "relative to where we are"


def test_a_variable_that_names_nothing_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="nowhere"):
        Workspace.open(environ={"PRESSROOM_WORKSPACE": str(tmp_path / "nowhere")})


def test_a_wrong_setting_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        Workspace.open(tmp_path, environ={"PRESSROOM_OFFLINE": "perhaps"})
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".pressroom").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be written") as caught:
        Workspace.open(tmp_path, environ={})
    assert "PRESSROOM_WORKSPACE" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_place_that_is_read_only_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WorkspaceError, match="cannot be written"):
        Workspace.open(tmp_path, environ={})


def test_a_place_the_kernel_refuses_is_refused() -> None:
    """As root, too: nobody makes a directory in /proc."""
    place = Path("/proc/self") if Path("/proc/self").exists() else Path("/dev")
    with pytest.raises(WorkspaceError, match="cannot be written"):
        Workspace.open(place, environ={})


def test_it_is_not_committed_by_accident(tmp_path: Path) -> None:
    Workspace.open(tmp_path, environ={})
    assert (tmp_path / ".pressroom" / ".gitignore").read_text() == "*\n"


def test_some_room_is_put_aside_and_free_when_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 1 << 30
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(free))
    workspace = Workspace.open(tmp_path, environ={})
    reserve = workspace.dir / "reserve"
    workspace.keep_reserve()
    assert reserve.stat().st_size == 1 << 20
    with workspace.spending_reserve():
        assert reserve.exists()  # there is room enough
    free = 100
    with workspace.spending_reserve():
        assert not reserve.exists()
    assert not reserve.exists()  # and not taken from the last of it
    free = 1 << 30
    with workspace.spending_reserve():
        assert not reserve.exists()
    assert reserve.exists()


def test_paths_are_made(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, environ={})
    assert workspace.path("logs", "engine").is_dir()
    assert workspace.path("logs", "engine") == tmp_path / ".pressroom" / "logs" / "engine"


def test_opening_twice_is_opening_the_same(tmp_path: Path) -> None:
    first, second = Workspace.open(tmp_path, environ={}), Workspace.open(tmp_path, environ={})
    with first.lock("server", purpose="serve"):
        held = second.lock_holder("server")
        assert held is not None and (held["pid"], held["purpose"]) == (os.getpid(), "serve")
        with pytest.raises(LockedError, match="to serve"), second.lock("server", purpose="serve as well"):
            pytest.fail("two hold one lock")
    assert second.lock_holder("server") is None
    with locked(tmp_path / ".pressroom" / "locks" / "server.lock", purpose="look"):
        assert first.lock_holder("server") is not None


def test_offline_tells_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # setenv before delenv: what Workspace.open sets for the libraries must be gone after the test.
    for name in ("HF_HUB_OFFLINE", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    Workspace.open(tmp_path, environ={})
    assert "HF_HUB_OFFLINE" not in os.environ
    Workspace.open(tmp_path, environ={"PRESSROOM_OFFLINE": "1"})
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["PIP_NO_INDEX"]) == ("1", "1")


def test_closing_without_having_used_the_database(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, environ={})
    workspace.close()
    workspace.close()
    assert not (tmp_path / ".pressroom" / "pressroom.db").exists()
