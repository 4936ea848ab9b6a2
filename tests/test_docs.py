"""What the pages say can be followed: links resolve, code parses, commands and options exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from pressroom.cli import press

ROOT = Path(__file__).parent.parent
# The tree of a checkout, not what was made or installed in it.
_ELSEWHERE = {".venv", ".git", ".pressroom", ".pytest_cache", ".hypothesis", "build", "dist", "node_modules"}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not _ELSEWHERE & set(p.relative_to(ROOT).parts))

_FENCE = re.compile(r"^( *)```+(\w*)[^\n]*\n(.*?)^\1```+ *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the line of the page its text starts on."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for fence in _FENCE.finditer(text):
            if fence[2] in languages:
                line = text.count("\n", 0, fence.start()) + 2
                found.append(Block(page, line, fence[2], fence[3]))
    return found


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, most in found.items() for n in range(most + 1)}


def links(page: Path) -> Iterator[tuple[int, str]]:
    text = page.read_text(encoding="utf-8")
    # Code is no place for links; its lines are kept so that the numbers stay right.
    text = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    text = re.sub(r"`[^`\n]*`", "", text)
    for link in _LINK.finditer(text):
        yield text.count("\n", 0, link.start()) + 1, link[1]


def test_there_are_pages() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/index.md", "docs/settings.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    broken = []
    for line, target in links(page):
        path, _, anchor = unquote(target).partition("#")
        if re.match(r"[a-z][a-z0-9+.-]*:", path):
            continue  # the web: tests run without a network
        wanted = (page.parent / path).resolve() if path else page
        where = f"{page.relative_to(ROOT)}:{line}: {target}"
        if not wanted.exists():
            broken.append(f"{where}: there is no such file")
        elif not wanted.is_relative_to(ROOT):
            broken.append(f"{where}: leads out of the repository")
        elif anchor and wanted.suffix == ".md" and anchor not in anchors(wanted):
            broken.append(f"{where}: the page has no such heading; it has {sorted(anchors(wanted))}")
    if broken:
        pytest.fail("\n".join(broken), pytrace=False)


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, open_ends = set(), [ROOT / "README.md"]
    while open_ends:
        page = open_ends.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        open_ends += [(page.parent / target.partition("#")[0]).resolve() for _, target in links(page)]
    lost = [str(page.relative_to(ROOT)) for page in PAGES if page not in reached and page.parent.name != "changes"]
    assert not lost, "no page links to these"


@pytest.mark.parametrize("block", blocks("python", "toml", "json", "bash", "sh"), ids=str)
def test_code_parses(block: Block) -> None:
    if block.language == "python":
        ast.parse("\n" * (block.line - 1) + block.text, filename=str(block.page))
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        json.loads(block.text)
    else:
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def typed(block: Block) -> Iterator[list[str]]:
    """What a person types in a console block: its `$ ` lines, each command of a pipe for itself."""
    lines = block.text.replace("\\\n", " ").splitlines()
    for line in lines:
        if line.lstrip().startswith("$ "):
            words = shlex.split(line.lstrip()[2:], comments=True)
            command: list[str] = []
            for word in [*words, "|"]:
                if word in ("|", "&&", ";", "&", ">", "2>&1"):
                    yield command
                    command = []
                else:
                    command.append(word)


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_what_is_typed_exists(block: Block) -> None:
    assert any(line.lstrip().startswith("$ ") for line in block.text.splitlines()), "nothing is typed here"
    for command in typed(block):
        while command and re.fullmatch(r"\w+=.*", command[0]):  # FOO=1 make bench
            command = command[1:]
        if command[:1] == ["make"]:
            assert_targets(command[1:])
        elif command and command[0].rpartition("/")[2] == "press":
            assert_parses(command[1:])


def test_commands_in_running_text_exist() -> None:
    unknown = []
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        named = re.findall(r"`press ([a-z]+)\b[^`]*`", text)
        missing = [name for name in named if press.get_command(click.Context(press), name) is None]
        unknown += [f"{page.relative_to(ROOT)}: press {name}" for name in missing]
        for target in re.findall(r"`make ([a-z]+)`", text):
            assert_targets([target])
    assert not unknown


def assert_targets(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        if "=" not in word and not word.startswith("-"):
            assert re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), f"there is no target {word!r}"


def assert_parses(arguments: list[str]) -> None:
    """The command takes these arguments; nothing is run."""
    if not arguments or arguments[0].startswith("-"):
        return
    command = press.get_command(click.Context(press), arguments[0])
    assert command is not None, f"there is no command {arguments[0]!r}"
    command.make_context(arguments[0], list(arguments[1:]), resilient_parsing=False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# A b\n## A b\n### `press up`, again!\n", {"a-b", "a-b-1", "press-up-again"}),
        ("# One\n```\n# not one\n```\n## Naïve [link](x.md)\n", {"one", "naïve-link"}),
    ],
)
def test_anchors(tmp_path: Path, text: str, found: set[str]) -> None:
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert anchors(tmp_path / "page.md") == found


def test_links_in_code_are_none(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('[a](x.md) `[b](y.md)`\n```\n[c](z.md)\n```\n![d](<p.svg> "title")\n', encoding="utf-8")
    assert list(links(page)) == [(1, "x.md"), (5, "p.svg")]
