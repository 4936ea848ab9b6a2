"""Imports point one way: a part imports parts of lower layers only, and of another part only what is public."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pressroom

ROOT = Path(pressroom.__file__).parent

# The parts of one layer do not import each other. A part that is not in here yet enters with its layer.
LAYERS: list[set[str]] = [
    {"kernel"},
    {"text", "store", "track", "vectors", "cost"},
    {"registry", "ladder", "guard", "parallel", "features"},
    {"train", "compress", "engines", "watch"},
    {"gateway", "knowledge"},
    {"deploy", "agents"},
    {"cli", "console", "testing"},
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
TOP = len(LAYERS) - 1


@dataclass(frozen=True)
class Import:
    """One imported dotted name, and the place it is imported at."""

    name: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def imports(file: Path, root: Path) -> Iterator[Import]:
    """Every import from the package that the file makes: at its top, in functions, and for the type checker only."""
    package = [root.name, *file.relative_to(root).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            if name.split(".")[0] == root.name:
                yield Import(name, file, getattr(node, "lineno", 0))


def exported(package: Path) -> set[str]:
    """The names in `__all__` of a package, read without importing it."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def is_public(path: list[str], *, importer: str, root: Path) -> bool:
    """Whether another part may import it: a package, what its `__all__` names, or its base.py and what is in it."""
    here = root
    for depth, name in enumerate(path):
        if (here / name / "__init__.py").exists() and not name.startswith("_"):
            here = here / name
            continue
        if name in exported(here):
            return depth == len(path) - 1
        if (here / f"{name}.py").exists():
            # The kernel's modules are each as small as a base.py, and its package leaves out what is slow to import.
            # The outermost parts are what everything is there for: they may use any public module.
            open_to_us = name == "base" or here == root / "kernel" or LAYER[importer] == TOP
            return open_to_us and not any(part.startswith("_") for part in path)
        return False
    return True


def broken_rules(root: Path) -> list[str]:
    found: list[str] = []
    for file in sorted(root.rglob("*.py")):
        importer = file.relative_to(root).parts[0]
        if importer.endswith(".py"):  # the top package: it offers names of every part, and imports them when asked
            continue
        if importer not in LAYER:
            found.append(f"{file}:1: the part {importer!r} has no layer: add it to LAYERS in tests/test_layers.py")
            continue
        for imported in imports(file, root):
            path = imported.name.split(".")[1:]
            part = path[0] if path else ""
            if part in ("", importer) or part not in LAYER:  # the top package's own names
                continue
            if LAYER[importer] != TOP and LAYER[part] >= LAYER[importer]:
                found.append(
                    f"{imported}: {importer} (layer {LAYER[importer]}) imports {imported.name} (layer {LAYER[part]}); "
                    "what must go up goes as an event of kernel.events"
                )
            elif not is_public(path, importer=importer, root=root):
                found.append(
                    f"{imported}: {importer} imports {imported.name}, which is not public: "
                    f"across parts import only pressroom.{part} or its base.py"
                )
    return found


def test_imports_point_one_way() -> None:
    if found := broken_rules(ROOT):
        pytest.fail("\n".join(found), pytrace=False)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small package of the same form, in which one rule is broken at a time."""
    for name in ("kernel", "store", "store/formats", "engines", "gateway", "cli"):
        package = tmp_path / "pressroom" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("__all__ = ['Public']\nfrom x import Public, Hidden\n")
        (package / "base.py").write_text("Contract = 1\n")
        (package / "inside.py").write_text("Name = 1\n")
        (package / "_private.py").write_text("Name = 1\n")
    return tmp_path / "pressroom"


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("store/a.py", "from pressroom.engines import Public"),
        ("store/a.py", "import pressroom.engines"),
        ("store/a.py", "from ..engines import Public"),
        ("store/a.py", "def f():\n    from pressroom.gateway import Public"),
        ("store/a.py", "import importlib\nimportlib.import_module('pressroom.gateway')"),
        ("store/formats/a.py", "from ... import engines"),
        ("kernel/a.py", "from pressroom.store.base import Contract"),
        ("gateway/a.py", "from pressroom.cli import Public"),
        ("gateway/a.py", "from pressroom.engines import Hidden"),
        ("gateway/a.py", "from pressroom.engines import inside"),
        ("gateway/a.py", "from pressroom.engines.inside import Name"),
        ("gateway/a.py", "from pressroom.store.formats.inside import Name"),
        ("gateway/a.py", "from pressroom.kernel._private import Name"),
        ("cli/a.py", "from pressroom.engines._private import Name"),
        ("attic/a.py", "x = 1"),
    ],
)
def test_a_broken_rule_is_named_with_its_line(house: Path, file: str, line: str) -> None:
    (house / file).parent.mkdir(exist_ok=True)
    (house / file).write_text(f"\n{line}\n")
    found = broken_rules(house)
    assert len(found) == 1
    expected = 1 if file.startswith("attic") else 1 + len(line.splitlines())
    assert found[0].startswith(f"{house / file}:{expected}: ")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("gateway/a.py", "from pressroom.engines import Public"),
        ("gateway/a.py", "from pressroom.engines.base import Contract"),
        ("gateway/a.py", "from pressroom.engines import base"),
        ("gateway/a.py", "from pressroom.store.formats import Public"),
        ("gateway/a.py", "from pressroom.store.formats.base import Contract"),
        ("gateway/a.py", "from pressroom.gateway._private import Name"),
        ("gateway/a.py", "from . import _private"),
        ("gateway/a.py", "from pressroom import __version__"),
        ("gateway/a.py", "from pressroom.kernel.inside import Name"),
        ("cli/a.py", "from pressroom.engines.inside import Name"),
    ],
)
def test_what_is_allowed_is_not_named(house: Path, file: str, line: str) -> None:
    (house / file).write_text(f"{line}\n")
    assert broken_rules(house) == []
