"""Backends by name, from a package of files and from other distributions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pressroom.kernel import MissingDependencyError, PluginError, plugins

PACKAGE, GROUP = "printers.backends", "printers.presses"


@pytest.fixture(autouse=True)
def printers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A part with backends of its own, and another distribution that brings one more."""
    files = {
        "printers/__init__.py": "",
        "printers/backends/__init__.py": "",
        "printers/backends/base.py": "raise RuntimeError('the contract is no backend')",
        "printers/backends/_shared.py": "raise RuntimeError('private')",
        "printers/backends/offset.py": "class Backend: made = 'offset'",
        "printers/backends/laser.py": "import a_library_nobody_has\nclass Backend: pass",
        "printers/backends/empty.py": "",
        "printers/backends/broken.py": "import printers.no_such_module",
        "foreign_printers.py": "class Backend: made = 'foreign'\nclass Risograph: made = 'risograph'",
        "foreign_printers-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: foreign-printers\nVersion: 1\n",
        "foreign_printers-1.dist-info/entry_points.txt": (
            "[printers.presses]\nmodule = foreign_printers\nclass = foreign_printers:Risograph\n"
            "offset = foreign_printers\ngone = a_library_nobody_has:Backend\nwrong = foreign_printers:Nobody\n"
        ),
    }
    for name, content in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("printers", "foreign_printers"))]:
        del sys.modules[name]


def test_listing_imports_nothing() -> None:
    found = plugins.names(PACKAGE, GROUP)
    assert found == ["broken", "class", "empty", "gone", "laser", "module", "offset", "wrong"]
    assert not any(name.startswith(("printers.backends.", "foreign_printers")) for name in sys.modules)


def test_a_file_is_a_backend() -> None:
    assert plugins.load(PACKAGE, GROUP, "offset").made == "offset", "and comes before a foreign one of its name"


@pytest.mark.parametrize(("name", "made"), [("module", "foreign"), ("class", "risograph")])
def test_another_distribution_brings_one(name: str, made: str) -> None:
    assert plugins.load(PACKAGE, GROUP, name).made == made


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(PluginError, match="'ofset'") as caught:
        plugins.load(PACKAGE, GROUP, "ofset")
    assert "offset" in caught.value.hint
    assert "laser" in caught.value.facts["known"]


def test_an_unknown_name_unlike_any_lists_them_all() -> None:
    with pytest.raises(PluginError) as caught:
        plugins.load(PACKAGE, GROUP, "zzzzzz")
    assert "laser" in caught.value.hint and "offset" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "base", "_shared", "../offset", "offset.Backend", "__init__"])
def test_what_is_no_backend_is_not_imported(name: str) -> None:
    with pytest.raises(PluginError):
        plugins.load(PACKAGE, GROUP, name)


@pytest.mark.parametrize("name", ["laser", "gone"])
def test_a_missing_library_names_the_command(name: str) -> None:
    with pytest.raises(MissingDependencyError, match="a_library_nobody_has") as caught:
        plugins.load(PACKAGE, GROUP, name)
    assert "pip install" in caught.value.hint
    assert caught.value.facts == {"backend": name, "library": "a_library_nobody_has"}


@pytest.mark.parametrize("name", ["empty", "wrong"])
def test_a_backend_without_its_class_is_named(name: str) -> None:
    with pytest.raises(PluginError, match=name) as caught:
        plugins.load(PACKAGE, GROUP, name)
    assert not isinstance(caught.value, MissingDependencyError)
