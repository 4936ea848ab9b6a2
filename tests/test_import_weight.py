"""`import pressroom` and `press --help` load next to nothing: what slipped in is named, with who pulled it in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pressroom.cli._app import COMMANDS

# Besides the standard library and Pressroom itself. `org`: a name the standard library's `copy` looks for on Jython.
LIGHT = {"click", "org"}
# Parts of the standard library that cost more than 5 ms here and that nobody needs to print a help text.
HEAVY_STANDARD = {"asyncio", "ssl", "http", "multiprocessing", "concurrent", "sqlite3", "unittest", "xml"}

_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)")

# What importing it or asking for its help would be for nothing.
CASES = {
    "import pressroom": ["-c", "import pressroom"],
    "import pressroom.cli": ["-c", "import pressroom.cli"],
    "press --help": ["-m", "pressroom", "--help"],
    "press --version": ["-m", "pressroom", "--version"],
    "press depoly (unknown)": ["-m", "pressroom", "depoly"],
    **{f"press {name} --help": ["-m", "pressroom", name, "--help"] for name in COMMANDS},
}


def imported(command: list[str], cwd: Path) -> Iterator[tuple[list[str], int]]:
    """Each module the command imports, as the chain of modules that led to it, with the microseconds it took."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSROOM_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )
    assert done.returncode in (0, 2), done.stderr
    lines = [match for line in done.stderr.splitlines() if (match := _LINE.fullmatch(line.rstrip()))]
    assert lines, "python -X importtime printed nothing"
    chain: list[str] = []
    # A module is printed after those it imported, two columns to their left: read from the end it is a plain tree.
    for match in reversed(lines):
        depth = len(match[3]) // 2
        chain = [*chain[:depth], match[4]]
        yield chain, int(match[2])


@cache
def loaded_anyway() -> frozenset[str]:
    """What the interpreter brings of itself: site, and what .pth files of the environment load."""
    return frozenset(chain[-1].split(".")[0] for chain, _ in imported(["-c", "pass"], Path.cwd()))


@pytest.mark.parametrize("case", CASES)
def test_nothing_heavy_is_loaded(case: str, tmp_path: Path) -> None:
    allowed = (sys.stdlib_module_names - HEAVY_STANDARD) | {"pressroom"} | loaded_anyway()
    if case != "import pressroom":
        allowed |= LIGHT
    found = []
    for chain, microseconds in imported(CASES[case], tmp_path):
        if chain[-1].split(".")[0] not in allowed and all(name.split(".")[0] in allowed for name in chain[:-1]):
            found.append(
                f"{chain[-1]} ({microseconds / 1000:.1f} ms) through {' > '.join(chain[:-1]) or 'the command'}"
            )
    if found:
        pytest.fail(f"`{case}` loads what it does not need:\n" + "\n".join(found), pytrace=False)


def test_importing_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    """No handler, no environment variable, no file, no thread, no warning filter."""
    program = """
import logging, os, sys, threading, warnings
before = (dict(os.environ), list(logging.root.handlers), list(warnings.filters), sys.path[:], threading.active_count())
import pressroom, pressroom.cli, pressroom.kernel
after = (dict(os.environ), list(logging.root.handlers), list(warnings.filters), sys.path[:], threading.active_count())
assert before == after, [(b, a) for b, a in zip(before, after) if b != a]
assert os.listdir() == []
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
