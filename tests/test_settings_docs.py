"""docs/settings.md and docs/cli.md say what the code says; `make docs` writes them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pressroom.cli._app import COMMANDS
from pressroom.kernel.settings import described, load

ROOT = Path(__file__).parent.parent


def test_the_pages_made_from_code_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs.py", "--check"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)


@pytest.mark.parametrize(("dotted", "variable"), [(dotted, variable) for dotted, variable, _, _ in described()])
def test_every_setting_is_on_the_page(dotted: str, variable: str) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert f"`{variable}`" in page
    assert f"`{dotted.rpartition('.')[2]}`" in page


def test_the_example_of_the_page_is_a_valid_file_of_defaults(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(example)
    (tmp_path / "pressroom.toml").write_text(example, encoding="utf-8")
    assert load(tmp_path / "pressroom.toml", {}) == load(None, {})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_on_the_page(name: str) -> None:
    assert f"\n## press {name}\n" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
