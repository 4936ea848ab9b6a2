"""Models made elsewhere, registered as what they are: with their parent, kind, tags and words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import NotFoundError, RefError, Workspace
from pressroom.registry import AnnotationError, Pulled, Registry, pull
from pressroom.store import Blob, Store

from .servers import File, site
from .test_path_source import notes, nothing_kept
from .weights import gguf_bytes, model_folder, noise_bytes


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return model_folder(tmp_path / "base"), model_folder(tmp_path / "tuned", seed=1)


def test_a_fine_tune_of_something(workspace: Workspace, folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    parent = pull(workspace, str(base))
    version = pull(
        workspace,
        str(tuned),
        name="mine",
        parent="base:1",
        tags={"team": "search"},
        description="Tuned on our tickets.",
        run="f00d",
    )
    assert (version.name, version.kind, version.parent) == ("mine", "fine-tune", parent.digest)
    assert (version.tags, version.description, version.run) == ({"team": "search"}, "Tuned on our tickets.", "f00d")
    assert Registry(workspace).get("mine") == version


def test_its_parent_is_where_it_is_near(
    workspace: Workspace, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = folders
    parent = pull(workspace, str(base))
    given: list[Sequence[str]] = []
    kind = type(Registry(workspace).store)
    put_file = kind.put_file

    def noted(store: Store, path: Path, *, near: Sequence[str] = (), **how: Any) -> Blob:
        given.append(near)
        return put_file(store, path, near=near, **how)

    monkeypatch.setattr(kind, "put_file", noted)
    pull(workspace, str(tuned), parent=parent.ref)
    assert given and all(set(near) == {entry.blob for entry in parent.files} for near in given)


def test_a_fine_tune_costs_what_differs_and_is_not_rebuilt(workspace: Workspace, tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    (base / "model.safetensors").write_bytes(noise_bytes(1, 1 << 20, dtype="BF16"))
    tuned = model_folder(tmp_path / "tuned")
    changed = bytearray(noise_bytes(1, 1 << 20, dtype="BF16"))
    changed[-1000:] = bytes(1000)
    (tuned / "model.safetensors").write_bytes(changed)
    seen: list[Pulled] = []
    workspace.events.subscribe(Pulled, seen.append)
    pull(workspace, str(base))
    version = pull(workspace, str(tuned), parent="base")
    assert seen[1].stored < seen[1].logical / 10
    registry = Registry(workspace)
    # Judging what is kept puts no file together: that would take long for large ones, and as much room.
    assert not [path for path in workspace.dir.rglob("cache/**/*") if path.is_file()]
    (blob,) = (entry.blob for entry in version.files if entry.path == "model.safetensors")
    with registry.store.open(blob) as file:
        assert file.read() == changed


@pytest.mark.parametrize("kind", ["merged", "quantised", "pruned", "adapter", "distilled", "base"])
def test_other_kinds(workspace: Workspace, folders: tuple[Path, Path], kind: str) -> None:
    base, tuned = folders
    pull(workspace, str(base))
    assert pull(workspace, str(tuned), parent="base", kind=kind).kind == kind


def test_words_that_are_wrong_cost_nothing(workspace: Workspace, folders: tuple[Path, Path]) -> None:
    with site({"/m.gguf": File(gguf_bytes())}) as web:
        source = f"{web.url}/m.gguf"
        with pytest.raises(NotFoundError):
            pull(workspace, source, parent="nothing")
        with pytest.raises(RefError):
            pull(workspace, source, parent="no such:thing")
        for how in ({"kind": "better"}, {"kind": "merged", "as_data": True}):
            with pytest.raises(ValueError, match="kind"):
                pull(workspace, source, **how)
        assert web.asked == []
        with pytest.raises(AnnotationError):
            pull(workspace, source, tags={"": "x"})
    assert nothing_kept(workspace)


def test_what_is_here_takes_on_new_words_and_keeps_what_it_is(workspace: Workspace, folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    pull(workspace, str(base))
    first = pull(workspace, str(tuned), tags={"a": "1"})
    said = notes(workspace)
    version = pull(workspace, str(tuned), parent="base", tags={"b": "2"}, description="Ours.")
    assert (version.number, version.kind, version.parent) == (1, "base", None)
    assert (version.tags, version.description) == ({"a": "1", "b": "2"}, "Ours.")
    assert any("without a parent" in text for text in said)
    assert (version.digest, version.created) == (first.digest, first.created)
    said.clear()
    pull(workspace, str(tuned), kind="merged")
    assert any("as base" in text for text in said)


def test_words_for_what_is_known_without_asking(workspace: Workspace) -> None:
    import hashlib

    digest = hashlib.sha256(gguf_bytes()).hexdigest()
    with site({"/m.gguf": File(gguf_bytes())}) as web:
        source = f"{web.url}/m.gguf#sha256={digest}"
        pull(workspace, source)
        asked = len(web.asked)
        assert pull(workspace, source, tags={"a": "1"}).tags == {"a": "1"}
        named = pull(workspace, source, name="other", tags={"b": "2"}, description="Also.")
        assert (named.name, named.tags, named.description) == ("other", {"b": "2"}, "Also.")
        assert len(web.asked) == asked


def test_what_a_pull_cost(workspace: Workspace, folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    seen: list[Pulled] = []
    workspace.events.subscribe(Pulled, seen.append)
    pull(workspace, str(base))
    pull(workspace, str(tuned), parent="base")
    assert [cost.version.name for cost in seen] == ["base", "tuned"]
    assert all(cost.logical == cost.version.size and cost.fetched == 0 and cost.files == 3 for cost in seen)
    # The two share their configuration, and the store has it once.
    assert seen[1].stored < seen[0].logical
