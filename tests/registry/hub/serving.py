"""The hub behind a gateway on a free port, and the real clients in processes of their own.

Clients read HF_ENDPOINT and the like once, when they are imported: a process of its own is how people run them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from pressroom.kernel import GatewaySettings, Keys, Workspace
from pressroom.registry import FileEntry, Registry, Version
from pressroom.registry.hub import Hub
from pressroom.testing.gateway import GatewayThread


class HubServer(GatewayThread):
    """Serves the hub of a workspace while entered."""

    def __init__(self, workspace: Workspace, *, host: str = "127.0.0.1") -> None:
        self.workspace = workspace
        self.registry = Registry(workspace)
        self.keys = Keys(workspace)
        self.hub = Hub(workspace)
        super().__init__(settings=GatewaySettings(host=host, drain_s=1.0), hub=self.hub)

    def key(self, *rights: str, name: str = "tester") -> str:
        """The secret of a new key."""
        return self.keys.create(name, rights or ("write",))[1]

    def api(self, key: str | bool = False) -> HfApi:
        return HfApi(endpoint=self.url, token=key)

    def add(self, name: str, folder: Path, **more: Any) -> Version:
        """Register the files of a folder."""
        entries = []
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                blob = self.registry.store.put_file(path)
                entries.append(FileEntry(path=path.relative_to(folder).as_posix(), blob=blob.digest, size=blob.size))
        return self.registry.register(name, entries, **more)

    def spooled(self) -> list[str]:
        """What lies in the spool."""
        return sorted(path.name for path in (self.workspace.dir / "tmp" / "hub").iterdir())


class Tool:
    """Runs programs against a hub, with a home and a cache of their own."""

    def __init__(self, hub: HubServer, tmp_path: Path) -> None:
        self._hub = hub
        self.home = tmp_path / "hf-home"
        self._work = tmp_path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PRESSROOM_"))}
        return kept | {
            "HOME": str(self._work),
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self._hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_COLOR": "1",
            **more,
        }

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env=self.environment(**environment),
            cwd=self._work,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def hf(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command `hf`."""
        return self.run(str(Path(sys.executable).with_name("hf")), *arguments, check=check, **environment)

    def python(self, program: str, *arguments: str, **environment: str) -> Any:
        """What the program prints last, as JSON; the program imports what it wants and calls `show`."""
        lead = "import json, sys\ndef show(value):\n    print('\\n' + json.dumps(value))\n"
        done = self.run(sys.executable, "-c", lead + textwrap.dedent(program), *arguments, **environment)
        return json.loads(done.stdout.strip().splitlines()[-1])


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of a folder by path."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".cache" not in path.parts:
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def paths(versions: Sequence[FileEntry]) -> list[str]:
    return [entry.path for entry in versions]
