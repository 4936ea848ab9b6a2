"""Families: who comes from whom, what each step changed, and what the store would get back without it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import click
import pytest

from pressroom.cli._family import step_parts, tree_lines
from pressroom.cli._family_svg import family_svg
from pressroom.kernel import Workspace
from pressroom.registry import Figure, FileEntry, Member, Registry, Version, family
from pressroom.registry import _tables as tables


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


def make(registry: Registry, content: bytes, name: str, parent: Version | None = None, **more: Any) -> Version:
    blob = registry.store.put([content])
    entry = FileEntry(path="f", blob=blob.digest, size=blob.size)
    return registry.register(name, [entry], parent=parent.digest if parent else None, **more)


def shape(member: Member) -> Any:
    """Nested references, for comparing."""
    return (member.refs[0] if member.refs else member.digest, [shape(child) for child in member.children])


def perplexity(value: float) -> list[Figure]:
    return [Figure(name="perplexity", value=value)]


def test_the_whole_family_from_any_member(registry: Registry) -> None:
    base = make(registry, b"base", "base")
    tuned = make(registry, b"tuned", "tuned", base)
    other = make(registry, b"other", "other", base)
    merged = make(registry, b"merged", "merged", tuned)
    make(registry, b"stranger", "stranger")
    expected = ("base:1", [("tuned:1", [("merged:1", [])]), ("other:1", [])])
    for version in (base, tuned, other, merged):
        assert shape(family(registry, version)) == expected
    assert shape(family(registry, registry.get("stranger"))) == ("stranger:1", [])
    assert [member.refs[0] for member in family(registry, merged).walk()] == [
        "base:1",
        "tuned:1",
        "merged:1",
        "other:1",
    ]


def test_steps_say_what_both_sheets_have(registry: Registry) -> None:
    base = make(registry, b"b" * 100, "m", figures=perplexity(10))
    make(registry, b"c" * 30, "m", base, figures=[*perplexity(12), Figure(name="kl_mean", value=0.5)])
    make(registry, b"d" * 130, "m", base)
    make(registry, b"e", "m", base, figures=[Figure(name="perplexity", value="unknown")])
    first, second, third = (child.step for child in family(registry, base).children)
    assert first is not None and (first.bytes, first.perplexity, first.kl) == (-70, (10.0, 12.0), 0.5)
    assert first.perplexity_percent == pytest.approx(20)
    assert step_parts(first) == ["−70 B", "perplexity 10 → 12 (+20.0%)", "KL 0.5"]
    assert step_parts(first, narrow=True) == ["−70 B", "perplexity +2 (+20.0%)", "KL 0.5"]
    assert second is not None and (second.bytes, second.perplexity, second.kl) == (30, None, None)
    assert step_parts(second) == ["+30 B"]
    assert third is not None and third.perplexity is None


def test_what_is_freed_is_what_the_store_says(registry: Registry) -> None:
    base = make(registry, b"base" * 1000, "m")
    root = family(registry, base)
    assert root.frees == registry.store.cost(base.files[0].blob)
    registry.store.delete(base.files[0].blob)
    assert family(registry, base).frees is None
    assert "bytes missing" in next(tree_lines(family(registry, base), marked="", deployed={}))


def test_equal_files_are_one_member(registry: Registry) -> None:
    base = make(registry, b"base", "a")
    make(registry, b"base", "b")
    make(registry, b"child", "c", base)
    registry.promote("b", "production")
    root = family(registry, registry.get("b"))
    assert root.refs == ["a:1", "b:1"] and root.aliases == ["b:production"]
    assert shape(root) == ("a:1", [("c:1", [])])
    assert "[b:production]" in next(tree_lines(root, marked="", deployed={}))


def test_a_parent_that_is_not_here_is_named(registry: Registry) -> None:
    blob = registry.store.put([b"x"])
    gone = "sha256-" + "ab" * 32
    version = registry.register("m", [FileEntry(path="f", blob=blob.digest, size=1)], parent=gone)
    root = family(registry, version)
    assert (root.digest, root.refs, [child.refs for child in root.children]) == (gone, [], [["m:1"]])
    lines = [click.unstyle(line) for line in tree_lines(root, marked=version.digest, deployed={})]
    assert lines[0] == "sha256-abababababab…  not registered here" and lines[1].endswith("◀")
    assert json.dumps([member.as_dict() for member in root.walk()])


def insert(workspace: Workspace, rows: list[dict[str, Any]]) -> None:
    Registry(workspace)
    with workspace.database.begin() as connection:
        connection.execute(tables.names.insert().values(name="m", last_number=len(rows)))
        connection.execute(
            tables.versions.insert(),
            [
                {"name": "m", "number": n + 1, "kind": "base", "source": "", "created": n, "metadata": {}, **row}
                for n, row in enumerate(rows)
            ],
        )


def test_a_circle_ends(workspace: Workspace) -> None:
    """Nobody can make one by registering; a database that was altered may have one."""
    digests = [f"sha256-{n:064d}" for n in range(3)]
    insert(workspace, [{"digest": digests[n], "parent": digests[n - 1]} for n in range(3)])
    registry = Registry(workspace)
    for version in registry.list():
        assert len(list(family(registry, version).walk())) == 3


def test_a_chain_longer_than_the_stack(workspace: Workspace) -> None:
    digests = [f"sha256-{n:064d}" for n in range(3000)]
    insert(workspace, [{"digest": d, "parent": digests[n - 1] if n else None} for n, d in enumerate(digests)])
    registry = Registry(workspace)
    root = family(registry, registry.get("m:1500"))
    assert len(list(root.walk())) == 3000
    assert len(list(tree_lines(root, marked=digests[9], deployed={}))) > 3000
    drawing = family_svg(root, marked=digests[9], deployed={}, heading="long")
    assert ElementTree.fromstring(drawing) is not None
    assert json.dumps([member.as_dict() for member in root.walk()])


def test_a_drawing_is_well_formed_whatever_the_words(registry: Registry) -> None:
    base = make(registry, b"base", "m" * 90)
    drawing = family_svg(
        family(registry, base),
        marked=base.digest,
        deployed={base.digest: ["<script>alert(1)</script>", 'a"b&c', "\x1b[31m\0"]},
        heading="<&\x00\x1b\"'>",
    )
    root = ElementTree.fromstring(drawing)
    namespace = "{http://www.w3.org/2000/svg}"
    assert {element.tag for element in root.iter()} <= {
        namespace + tag for tag in ("svg", "title", "style", "rect", "text", "g", "path")
    }
    names = [element for element in root.iter(namespace + "text") if element.get("class") == "name"]
    assert names[0].text is not None and "m…m" in names[0].text and names[0].text.endswith(":1")


def test_equal_files_registered_again_without_a_parent_stay_in_their_family(registry: Registry) -> None:
    base = make(registry, b"base", "base")
    make(registry, b"tuned", "tuned", base, kind="fine-tune")
    make(registry, b"tuned", "another")
    (child,) = family(registry, registry.get("base")).children
    assert child.refs == ["tuned:1", "another:1"]
    assert child.versions[0].kind == "fine-tune"
