"""Pressroom's files for `compress.py`: what `press compress` makes for a budget, in a workspace of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_REFERENCE = "reference"


class Pressroom:
    """A workspace with the reference in it, as a base. What is made stays there and is taken again."""

    def __init__(self, folder: Path, reference: Path, *, text: Path, tokens: int) -> None:
        self._folder = folder
        self._text = text
        self._tokens = tokens
        folder.mkdir(parents=True, exist_ok=True)
        # Settings of the one who runs this must not change what is measured.
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("PRESSROOM_")}
        self._environ["PRESSROOM_WORKSPACE"] = str(folder.resolve())
        if _REFERENCE not in self._names():
            self._press("pull", str(reference.resolve()), "--as", _REFERENCE, "--kind", "base")

    def within(self, budget: int, *, again: bool = False) -> tuple[Path, dict[str, Any]]:
        """The file for a budget in bytes, and what was said of it; SystemExit where it is over the budget."""
        return self.made(f"budget-{budget}", "--budget", f"{budget}B", again=again, most=budget)

    def made(self, name: str, *how: str, again: bool = False, most: int = 0) -> tuple[Path, dict[str, Any]]:
        """The file that `press compress reference HOW --as NAME` makes: registered, and written out again."""
        target = self._folder / "files" / f"{name}.gguf"
        told_path = target.with_suffix(".json")
        if again or not told_path.exists():
            began = time.perf_counter()
            told = self._press(
                "compress",
                _REFERENCE,
                *how,
                "--as",
                name,
                "--text",
                str(self._text.resolve()),
                "--tokens",
                str(self._tokens),
                "--no-measure",
            )
            told = {**(told or {}), "seconds": round(time.perf_counter() - began, 1)}
            folder = target.with_suffix(".folder")
            shutil.rmtree(folder, ignore_errors=True)
            self._press("get", name, str(folder))
            (written,) = folder.glob("**/*.gguf")
            target.parent.mkdir(exist_ok=True)
            written.replace(target)
            shutil.rmtree(folder)
            told_path.write_text(json.dumps(told), encoding="utf-8")
        if most and target.stat().st_size > most:
            raise SystemExit(f"{name} takes {target.stat().st_size:,} bytes: more than its budget of {most:,}")
        return target, json.loads(told_path.read_text(encoding="utf-8"))

    def _names(self) -> set[str]:
        return {one["name"] for one in _versions(self._press("list"))}

    def _press(self, *arguments: str) -> Any:
        """What a command of `press` says in JSON; SystemExit with its error where it fails."""
        print(f"press {' '.join(arguments[:6])} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-P", "-m", "pressroom", *arguments, "--json"]
        made = subprocess.run(command, env=self._environ, capture_output=True, text=True, check=False)
        if made.returncode:
            raise SystemExit(f"press {' '.join(arguments)} failed:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
        return json.loads(made.stdout.strip() or "null")


def _versions(told: Any) -> list[Any]:
    return told if isinstance(told, list) else list(told["versions"])
