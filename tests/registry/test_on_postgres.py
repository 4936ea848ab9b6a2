"""The registry and the keys on a real PostgreSQL: the same behaviour, and the same safety when several move at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pressroom.kernel import AccessError, InUseError, Keys, NotFoundError, Workspace
from pressroom.registry import (
    Bound,
    Figure,
    FileEntry,
    PromotionError,
    Registry,
    Version,
    export_archive,
    family,
    import_archive,
    verify,
)
from pressroom.registry import _tables as tables

from .test_aliases import assert_consistent
from .weights import gguf_bytes

pytestmark = pytest.mark.slow


@pytest.fixture
def shared(postgres_url: str, tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "shared"
    root.mkdir()
    with Workspace.open(root, environ={"PRESSROOM_DATABASE": postgres_url}) as opened:
        yield opened


@pytest.fixture
def registry(shared: Workspace) -> Registry:
    return Registry(shared)


def make(registry: Registry, content: bytes, name: str = "m", **more: object) -> Version:
    blob = registry.store.put([content])
    files = [FileEntry(path="model.gguf", blob=blob.digest, size=blob.size)]
    return registry.register(name, files, **more)  # type: ignore[arg-type]


def at_once(*acts: Callable[[], object]) -> list[object]:
    """What each returned or raised."""
    found: list[object] = [None] * len(acts)

    def run(place: int) -> None:
        try:
            found[place] = acts[place]()
        except Exception as error:  # noqa: BLE001  the test looks at what it was
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_the_life_of_a_version(registry: Registry, shared: Workspace, tmp_path: Path) -> None:
    base = make(registry, gguf_bytes(seed=1), tags={"ü": "1"}, description="first", run="r", metadata={"a": [1, None]})
    made = make(registry, gguf_bytes(seed=2), parent=base.digest, figures=[Figure(name="perplexity", value=20.5)])
    assert registry.get("m:1") == base
    assert registry.annotate("m:1", tags={"ü": None, "b": "2"}).tags == {"b": "2"}
    registry.aliases.set_floor("m", "production", [Bound.parse("perplexity=parent+3%", "max")])
    with pytest.raises(PromotionError, match="m:1 has no perplexity"):
        registry.promote(made.ref, "production")
    registry.add_figures("m:1", [Figure(name="perplexity", value=20)])
    registry.promote(made.ref, "production", why="ready")
    assert registry.get("m:production").number == 2
    with pytest.raises(InUseError, match="m:production"):
        registry.delete("m:2")
    with pytest.raises(InUseError, match="parent"):
        registry.delete("m:1")
    assert [move.action for move in registry.history("m")] == ["floor set", "refused", "promoted"]
    assert family(registry, made).children[0].aliases == ["m:production"]
    assert len(registry.sha256(made.files[0].blob)) == 64
    assert verify(shared).sound
    archive = export_archive(shared, ["m:production"], tmp_path, with_parents=True)
    registry.demote("m", "production")
    registry.delete("m:2")
    registry.delete("m:1")
    assert [(one.here.number, one.known) for one in import_archive(shared, archive.path)] == [(3, False), (4, False)]
    assert verify(shared).sound


def test_keys(registry: Registry, shared: Workspace) -> None:
    make(registry, b"one")
    keys = Keys(shared)
    key, secret = keys.create("ci", ["promote:m"])
    assert keys.find(secret) == key
    with pytest.raises(AccessError):
        registry.promote("m", "production")
    assert registry.promote("m", "production", key=secret).who == "key:ci"
    keys.revoke("ci")
    assert keys.find(secret) is None
    found = at_once(*[lambda: keys.create("one", ["read"])] * 6)
    assert sum(isinstance(each, AccessError) for each in found) == 5


def test_moves_at_once(registry: Registry) -> None:
    for number in range(4):
        make(registry, b"%d" % number)

    def move(number: int) -> Callable[[], object]:
        def act() -> None:
            for _ in range(10):
                registry.promote(f"m:{number}", "production")

        return act

    assert at_once(*map(move, (1, 2, 3, 4))) == [None] * 4
    assert_consistent(registry)


def test_removing_and_promoting_at_once(registry: Registry) -> None:
    make(registry, b"stays")
    for turn in range(20):
        ref = make(registry, b"turn %d" % turn).ref
        moved, removed = at_once(
            lambda ref=ref: registry.promote(ref, "production"),
            lambda ref=ref: registry.delete(ref),  # type: ignore[misc]
        )
        assert isinstance(moved, NotFoundError) != isinstance(removed, InUseError), (moved, removed)
        assert_consistent(registry)


def test_words_figures_and_hashes_at_once(registry: Registry) -> None:
    blob = make(registry, b"one").files[0].blob
    acts: list[Callable[[], object]] = []
    for n in range(6):
        acts += [
            lambda n=n: registry.annotate("m", tags={"who": str(n), str(n): "x"}, run=str(n)),  # type: ignore[misc]
            lambda n=n: registry.add_figures("m", [Figure(name="same", value=n), Figure(name=str(n), value=n)]),  # type: ignore[misc]
            lambda: registry.sha256(blob),
            lambda: registry.lease([blob]),
        ]
    assert not [each for each in at_once(*acts) if isinstance(each, Exception)]
    found = registry.get("m")
    assert len(found.tags) == 7 and len(found.sheet) == 7


def test_a_database_from_before_goes_on(shared: Workspace) -> None:
    shared.database.migrate("registry", tables.MIGRATIONS[:2])
    with shared.database.begin() as connection:
        connection.execute(tables.names.insert().values(name="m", last_number=1))
        connection.execute(
            sa.insert(tables.versions).values(
                name="m", number=1, digest="sha256-" + "a" * 64, kind="base", source="", created=1.0, metadata={"a": 1}
            )
        )
    registry = Registry(shared)
    assert registry.get("m").tags == {}
    assert registry.promote("m", "production").to_number == 1


_MOVE = """
import sys
from pathlib import Path
from pressroom.kernel import Workspace
from pressroom.registry import Registry

with Workspace.open(Path(sys.argv[1]), environ={"PRESSROOM_DATABASE": sys.argv[2]}) as workspace:
    registry = Registry(workspace)
    print("ready", flush=True)
    number = 0
    while True:
        number = number % 3 + 1
        registry.promote(f"m:{number}", "production")
        if number == 2:
            registry.demote("m", "production")
"""


def test_killed_at_any_moment(registry: Registry, shared: Workspace, postgres_url: str) -> None:
    import random

    chance = random.Random(5)
    for number in range(3):
        make(registry, b"%d" % number)
    for _ in range(15):
        arguments = [sys.executable, "-c", _MOVE, str(shared.root), postgres_url]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            process.wait(chance.uniform(0.0, 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        process.stdout.close()
        assert process.returncode == -9
        assert_consistent(registry)
    assert len(registry.history("m")) > 15
