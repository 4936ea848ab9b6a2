"""`make` on a fresh clone: what it takes from the environment, what it says without a Python, and the main job."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a person who has just cloned: an empty home, no virtual environment, no settings."""
    dropped = ("PRESSROOM_", "VIRTUAL_ENV", "CI", "MAKE", "MFLAGS", "UV_", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "HOME": str(home), **more}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of this checkout, also those not committed yet, as a clone has them."""
    clone = tmp_path / "a clone"  # a space, as people have in their paths
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")
        names = [name for name in listed if name and (ROOT / name).is_file()]
    else:  # an unpacked source distribution
        names = ["Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"]
        names += [str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py")]
    for name in names:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    return clone


def make(clone: Path, *arguments: str, env: dict[str, str], makefile: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *(["-f", "-"] if makefile else []), *arguments],
        cwd=clone,
        env=env,
        input=makefile,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [
        ({"PIP_FIND_LINKS": "/a /b"}, {"UV_FIND_LINKS": "/a,/b"}),
        ({"PIP_INDEX_URL": "file:///index"}, {"UV_DEFAULT_INDEX": "file:///index"}),
        (
            {"PIP_EXTRA_INDEX_URL": "file:///a file:///b"},
            {"UV_INDEX": "file:///a file:///b", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ({"PIP_FIND_LINKS": "", "UV_FIND_LINKS": "/mine"}, {"UV_FIND_LINKS": "/mine"}),
        ({}, {}),
    ],
)
def test_where_packages_are_is_handed_on_to_uv(
    tmp_path: Path, given: dict[str, str], handed_on: dict[str, str]
) -> None:
    without = {name: value for name, value in environment(tmp_path).items() if not name.startswith("PIP_")}
    done = make(ROOT, "show", env={**without, **given}, makefile="include Makefile\nshow:\n\t@env\n")
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("UV_"))
    assert seen == handed_on


def test_an_old_python_is_passed_over(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)
    for name, does in {
        "python3.13": "exit 127",  # a launcher for a version that is not there
        "python3.12": "exit 1",  # one that is older than it says
        "python3.11": 'case "$1" in -m) mkdir -p .venv/bin; touch .venv/bin/python;; *) echo Python 3.11.9;; esac',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = environment(tmp_path)
    done = make(tmp_path, ".venv/bin/python", env={**env, "PATH": f"{tmp_path}:{env['PATH']}"})
    assert done.stdout == "Python 3.11.9 -> .venv\n", done.stderr


def test_without_a_python_it_says_what_to_do(tmp_path: Path) -> None:
    shutil.copy2(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    done = make(tmp_path, "up", "PYTHON=/no/python", env=environment(tmp_path))
    assert done.returncode != 0
    assert "No Python 3.11 or newer among: /no/python." in done.stderr
    assert "make PYTHON=/path/to/python3.12 up" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_scripts_can_be_run() -> None:
    for name in (".ci/run", "scripts/lock"):
        assert (ROOT / name).stat().st_mode & stat.S_IXUSR, f"{name} is not executable"


def test_constraints_pin_exactly_and_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins and all("==" in pin.partition(";")[0] for pin in pins)
    assert not [line for line in lines if "://" in line or line.startswith("-")]


@pytest.mark.slow
def test_make_up_on_a_fresh_clone(clone: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    small = {
        "PRESSROOM_MEASURE_WINDOWS": "1",
        "PRESSROOM_MEASURE_TOKENS": "8",
        "PRESSROOM_GATEWAY_PORT": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    env = environment(home, **small)
    done = make(clone, "--no-print-directory", "up", "ARGS=--once --json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert steps[-1]["step"] == "ready"
    assert list((clone / "src").rglob("*.pyc")), "bytecode is written at install, whatever the environment says"

    stamp = clone / ".venv" / ".installed-light"
    before = stamp.stat().st_mtime_ns
    again = make(clone, "--no-print-directory", "up", "ARGS=--once --json", env=env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(line.startswith("{") for line in again.stdout.splitlines()), "nothing is installed twice"
    assert stamp.stat().st_mtime_ns == before
