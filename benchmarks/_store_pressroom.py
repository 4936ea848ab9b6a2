"""Pressroom's own store, through its public interface, in a fresh workspace; see `_store_child.py`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _store_child import ROOM, Bytes, Taken, memory_at_hand, on_disk, restored

from pressroom.kernel import Workspace
from pressroom.store import Recipe, Store, open_store

# What a file was made from: the store finds its own parents, this only says what is in the cache when a pass is "hot".
_MADE_FROM = {"ckpt10": "base", "ckpt20": "ckpt10", "ckpt30": "ckpt20", "ft40": "ckpt30", "lora": "base"}
_MADE_FROM |= {"pruned": "ft40", "int8": "ft40", "one": "ft40", "ftfar": "ft40"}
# Not the model's bytes: work under way, locks, what can be rebuilt.
_ASIDE = ("cache", "tmp", "locks", "logs", "run")


class Pressroom:
    """`hot`: what the file was made from has been rebuilt in the cache before, as where both are in use. `cold`: the
    cache is empty and the store newly opened; every difference is taken from what is in the packs."""

    passes: tuple[str, ...] = ("hot", "cold")

    def __init__(self, into: Path, *, chains: str, threads: int) -> None:
        (into / "pressroom.toml").write_text(f'[storage]\nchains = "{chains}"\nthreads = {threads}\n')
        self._workspace = Workspace.open(into, environ={})
        self._store: Store = open_store(self._workspace)
        self.held: dict[str, str] = {}

    def ingest(self, name: str, file: Path) -> None:
        self.held[name] = self._store.put_file(file).digest

    def ingest_made(self, name: str, file: Path, recipe: Recipe) -> None:
        self.held[name] = self._store.put_file(file, recipe=recipe).digest

    def stored(self) -> int:
        """Everything in the workspace that the files need: packs, manifests, index."""
        kept = [path for path in self._workspace.dir.iterdir() if path.name not in _ASIDE]
        return sum(on_disk(path) if path.is_dir() else path.stat().st_size for path in kept)

    def prepare(self, how: str, name: str) -> None:
        if how == "cold":
            self._store.close()
            shutil.rmtree(self._workspace.dir / "cache", ignore_errors=True)
            self._store = open_store(self._workspace)
        elif name in _MADE_FROM and _MADE_FROM[name] in self.held:
            self._store.path(self.held[_MADE_FROM[name]])

    def restore(self, name: str, out: Bytes) -> Any:
        with self._store.open(self.held[name]) as file:
            view, read = memoryview(out), 0
            while read < len(out):
                count = file.readinto(view[read:])  # type: ignore[attr-defined]  # BinaryIO of a file or of our own
                assert count, "the store gave back fewer bytes than the file has"
                read += count

    def verify(self) -> None:
        for digest in self.held.values():
            self._store.verify(digest)

    def close(self) -> None:
        self._store.close()
        self._workspace.close()


def _recipe(name: str, held: Mapping[str, str]) -> Recipe | None:
    """What the job that made the file would have recorded. No job made `one`."""
    if name == "lora":
        return Recipe("lora_merge", (held["base"], held["adapter"]), {"alpha": 16})
    operation = {"pruned": "magnitude_prune", "int8": "absmax_int8_row"}.get(name)
    return Recipe(operation, (held["ft40"],)) if operation else None


def run(
    files: Mapping[str, Path],
    into: Path,
    *,
    chains: str,
    threads: int,
    adapter: str | None = None,
    passes: tuple[str, ...] = (),
    held: bool = False,
    recipes: bool = True,
) -> dict[str, Any]:
    """Take in all files (with `adapter`: that first, and what jobs recorded), perhaps again, then restore each.

    Without `recipes` the store does not look for any itself, which no setting says: differences alone are to be seen.
    """
    if not recipes:
        from pressroom.store.family import _writing

        _writing.guessed = lambda *_: []  # type: ignore[assignment]
    with contextlib.closing(Pressroom(into, chains=chains, threads=threads)) as approach:
        ingest, grown, kept = Taken(), {}, approach.stored()
        sizes = {name: file.stat().st_size for name, file in files.items()}
        told: dict[str, Any] = {"raw": sum(sizes.values()), "sizes": sizes}
        if adapter is not None:
            approach.ingest("adapter", Path(adapter))
            told["adapter"] = approach.stored() - kept
            kept += told["adapter"]
        for name, file in files.items():
            recipe = _recipe(name, approach.held) if adapter is not None else None
            memory_at_hand(ROOM * sizes[name])
            with ingest.timed(name, sizes[name]):
                if recipe is None:
                    approach.ingest(name, file)
                else:
                    approach.ingest_made(name, file, recipe)
            grown[name] = approach.stored() - kept
            kept += grown[name]
        told |= {"grown": grown, "ingest": ingest.as_dict(), "restore": {}}
        if held:
            again = Taken()
            for name, file in files.items():
                memory_at_hand(ROOM * sizes[name])
                with again.timed(name, sizes[name]):
                    approach.ingest(name, file)
            assert approach.stored() - kept < 1 << 20, "taking in what is held already took space"
            told["held"] = again.as_dict()
        for how in passes:
            told["restore"][how] = restored(approach, how, files, watch_memory=True).as_dict()
        if adapter is not None:
            approach.verify()
    # Closed: what the database wrote ahead is in it now, and no longer twice on the disk.
    return told | {"stored": approach.stored()}
