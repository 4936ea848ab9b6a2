"""Public means listed: `__all__` of every public package is the whole truth."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pressroom

ROOT = Path(pressroom.__file__).parent


def packages() -> list[str]:
    found = []
    for file in sorted(ROOT.rglob("__init__.py")):
        parts = [ROOT.name, *file.relative_to(ROOT).parent.parts]
        if not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return found


def bound(body: list[ast.stmt]) -> Iterator[str]:
    """The names a package's `__init__` makes: defined, assigned, or imported from this project."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("pressroom")):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.If):  # if TYPE_CHECKING: names that are resolved when used
            yield from bound([*node.body, *node.orelse])


@pytest.mark.parametrize("name", packages())
def test_all_is_the_whole_truth(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__doc__, f"{name} does not say what it is"
    source = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    public = {made for made in bound(source.body) if not made.startswith("_")}
    if not hasattr(package, "__all__"):
        assert not public, f"{name} has no __all__, but makes {sorted(public)}"
        return
    listed = list(package.__all__)
    assert len(listed) == len(set(listed)), f"{name}.__all__ lists a name twice"
    missing = [entry for entry in listed if not hasattr(package, entry)]
    assert not missing, f"{name}.__all__ lists {missing}, which cannot be had"
    assert not public - set(listed), f"{name} makes {sorted(public - set(listed))} without listing them in __all__"


@pytest.mark.parametrize("name", packages())
def test_a_package_is_quiet_about_what_it_does_not_have(name: str) -> None:
    package = importlib.import_module(name)
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018  the look-up is the test
