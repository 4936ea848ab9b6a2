"""Killed at any moment, on a full disk, two at once: nothing is lost, nothing is half there."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pressroom.kernel import StoreError, StoreFullError
from tests.store.family import models
from tests.store.family.models import as_gguf, base, quantised, tuned, write

_ROOT = Path(__file__).parents[3]

# Puts models of one family, deletes some, sweeps; says what it is about to do and what it did. argv: directory, seed.
_WORKER = """
import random, sys
from pathlib import Path
from pressroom.kernel import LockedError
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, quantised, tensors, tuned, write

root, seed = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
store = models.store_at(root, chains=rng.choice(["fast", "small"]))
first = base(width=64, layers=2)
held = []
print("ready", flush=True)
while True:
    what = rng.random()
    if what < 0.6:
        number = rng.randrange(12)
        if number < 2:
            content = as_gguf(quantised(number))
        else:
            content = as_safetensors(tensors(tuned(first, number) if number > 2 else first))
        path = write(root / f"model-{seed}", content)
        digest = store.put_file(path).digest if rng.random() < 0.7 else store.put([content]).digest
        held = [*(one for one in held if one != digest), digest]
        print("held", digest, flush=True)
    elif what < 0.75 and held:
        digest = held.pop(rng.randrange(len(held)))
        print("deleting", digest, flush=True)
        store.delete(digest)
    elif what < 0.85 and held:
        store.path(rng.choice(held)) if rng.random() < 0.9 else store.rebuild_index()
    else:
        try:
            store.sweep()
        except LockedError:
            pass
        print("swept", flush=True)
"""


def started(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT,
    )  # fmt: skip


def check(root: Path, expected: set[str]) -> None:
    """All that was announced is held, all that is held is whole, and a sweep leaves nothing behind."""
    store = models.store_at(root)
    listed = {blob.digest for blob in store.list()}
    assert expected <= listed
    for digest in listed:
        store.verify(digest)
    store.sweep()
    for digest in listed:
        store.verify(digest)
    assert store.usage().reclaimable == 0
    assert store.sweep(dry_run=True).freed == 0
    store.close()
    for folder in ("store/tmp", "store/spool"):
        assert not (root / folder).exists() or list((root / folder).iterdir()) == []


def killed_at_random(root: Path, moments: int, seed: int) -> int:
    rng = random.Random(seed)
    expected: set[str] = set()
    announced = 0
    for moment in range(moments):
        process = started(_WORKER, root, seed + moment)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        # Some work is waited for, so that a slow machine does not kill processes that have done nothing yet.
        said = [process.stdout.readline() for _ in range(rng.randrange(5))]
        time.sleep(rng.uniform(0.0, 0.15))
        assert process.poll() is None, process.stderr.read()
        process.kill()
        for line in [*said, *process.stdout.read().splitlines(keepends=True)]:
            word, _, digest = line.strip().partition(" ")
            if line[-1] != "\n" and word != "deleting":
                continue  # cut by the kill
            if word == "held":
                expected.add(digest)
                announced += 1
            elif word == "deleting":
                expected.discard(digest)
        process.wait()
        process.stdout.close()
        process.stderr.close()
        check(root, expected)
    return announced


def test_kill_minus_9_at_some_moments(tmp_path: Path) -> None:
    assert killed_at_random(tmp_path, 6, 1), "every process was killed before it could put anything"


@pytest.mark.slow
def test_kill_minus_9_at_random_moments(tmp_path: Path) -> None:
    # Sixty in a full run, which takes long enough; FAMILY_KILLS=200 is what is promised.
    kills = int(os.environ.get("FAMILY_KILLS", "60"))
    assert killed_at_random(tmp_path, kills, 1000) > kills


@pytest.mark.parametrize("call", range(1, 14))
def test_killed_at_each_step_of_making_things_durable(tmp_path: Path, call: int) -> None:
    """The process ends at the nth sync or rename of a put: before it the file is not held, after the last one it is."""
    script = f"""
import os, sys
from pathlib import Path
from tests.store.family import models
from tests.store.family.models import base, tuned
root = Path(sys.argv[1])
store = models.store_at(root)
store.put_file(models.model_file(root / "a", base(width=64)))
path = models.model_file(root / "b", tuned(base(width=64), 1))
calls = 0
def counted(real):
    def call(*arguments, **how):
        global calls
        calls += 1
        if calls == {call}:
            os._exit(9)
        return real(*arguments, **how)
    return call
os.fsync = counted(os.fsync)
Path.rename = counted(Path.rename)
print(store.put_file(path).digest, flush=True)
"""
    process = started(script, tmp_path)
    out, error = process.communicate()
    assert process.returncode in (0, 9), error
    first = (tmp_path / "a").read_bytes()
    check(tmp_path, {models.digest_of(first), *out.split()})
    store = models.store_at(tmp_path)
    blob = store.put_file(tmp_path / "b")
    assert store.path(blob.digest).read_bytes() == (tmp_path / "b").read_bytes()
    store.close()


# argv: directory, what to do; starts when told to.
_TWO = """
import random, sys
from pathlib import Path
from pressroom.kernel import LockedError
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, quantised, tensors, tuned, write
root, own = Path(sys.argv[1]), sys.argv[2]
store = models.store_at(root)
sys.stdin.readline()
for turn in range(3):
    if own == "sweep":
        for _ in range(4):
            try:
                store.sweep()
            except LockedError:
                pass
        continue
    shared = base(turn, width=64, layers=2)
    for model in (shared, tuned(shared, 1), tuned(shared, 10 + int(own))):
        content = as_safetensors(tensors(model))
        print(store.put_file(write(root / f"m{own}", content)).digest, flush=True)
    print(store.put([as_gguf(quantised(turn))]).digest, flush=True)
store.close()
"""


def test_processes_that_put_the_same_and_the_related_while_another_sweeps(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO, str(tmp_path), own],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT,
        )
        for own in ("1", "2", "3", "sweep")
    ]  # fmt: skip
    said: set[str] = set()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, error = process.communicate()
        assert process.returncode == 0, error
        said.update(out.split())
    assert len(said) == 3 * (2 + 3) + 3
    check(tmp_path, said)
    store = models.store_at(tmp_path)
    assert {blob.digest for blob in store.list()} == said
    store.close()


def on_a_small_disk(root: Path, script: str, *, options: str) -> Any:
    """What `script` prints as JSON, run where `root/disk` is a disk of few bytes."""
    (root / "disk").mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if sys.platform != "linux" or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    command = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$1" -c "$2" "$0"'
    head = """
import json, sys
from pathlib import Path
from pressroom.kernel import StoreError
from tests.store.family import models
from tests.store.family.models import as_gguf, as_safetensors, base, quantised, tensors, tuned, write
root = Path(sys.argv[1])
store = models.store_at(root)
def attempt(path):
    try:
        return {"digest": store.put_file(path).digest}
    except StoreError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint, **error.facts}
def files():
    found = [p for p in (root / "store").rglob("*") if p.is_file() and p.suffix != ".lock" and "index" not in p.name]
    return sorted(str(p.relative_to(root / "store")) for p in found)
"""
    ran = subprocess.run(
        [*unshare, "sh", "-c", command, str(root / "disk"), sys.executable, head + script],
        capture_output=True, text=True, check=False, cwd=_ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_disk_that_fills_up_while_weights_are_put(tmp_path: Path) -> None:
    large, small, child, whole = (tmp_path / name for name in ("large", "small", "child", "whole"))
    models.model_file(large, base(1, width=700))
    models.model_file(small, base(2, width=96))
    models.model_file(child, tuned(base(2, width=96), 1))
    write(whole, as_gguf(quantised(rows=4000)))
    script = f"""
small, before = attempt(Path("{small}")), files()
large = attempt(Path("{large}"))
after_large = files()
whole = attempt(Path("{whole}"))
after = files()
child = attempt(Path("{child}"))
for blob in store.list():
    store.verify(blob.digest)
print(json.dumps([small, large, whole, child, before, after_large, after]))
"""
    small_said, large_said, whole_said, child_said, before, after_large, after = on_a_small_disk(
        tmp_path, script, options="size=2500k"
    )
    assert "digest" in small_said and "digest" in child_said
    for refused in (large_said, whole_said):
        assert refused["error"] == "StoreFullError" and refused["hint"]
    assert before == after_large == after


def test_a_disk_so_full_that_nothing_can_be_written(tmp_path: Path) -> None:
    models.model_file(tmp_path / "small", base(2))
    models.model_file(tmp_path / "child", tuned(base(2), 1))
    script = f"""
held = attempt(Path("{tmp_path / "small"}"))
filler = (root / "filler").open("wb", buffering=0)
try:
    while filler.write(b"." * 4096):
        pass
except OSError:
    pass
refused = attempt(Path("{tmp_path / "child"}"))
again = attempt(Path("{tmp_path / "small"}"))
left = files()
out = bytearray(store.size(held["digest"]))
store.read_into(held["digest"], out)
same = bytes(out) == Path("{tmp_path / "small"}").read_bytes()
try:
    store.path(held["digest"])
    built = "built"
except StoreError as error:
    built = type(error).__name__
filler.close()
(root / "filler").unlink()
later = attempt(Path("{tmp_path / "child"}"))
store.sweep()
for blob in store.list():
    store.verify(blob.digest)
print(json.dumps([held, refused, again, same, built, later, left]))
"""
    held, refused, again, same, built, later, left = on_a_small_disk(tmp_path, script, options="size=1m")
    assert refused["error"] == "StoreFullError"
    assert again == held and same and built == "StoreFullError"
    assert "digest" in later
    assert not [name for name in left if name.startswith(("tmp", "spool"))]


@pytest.mark.parametrize("call", ["write", "pwrite"])
def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store = models.store_at(tmp_path)
    held = store.put_file(models.model_file(tmp_path / "a", base()))
    models.model_file(tmp_path / "b", base(3))
    for number, kind in ((errno.EIO, StoreError), (errno.ENOSPC, StoreFullError)):

        def broken(*_: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, broken)
            with pytest.raises(kind):
                store.put_file(tmp_path / "b") if call == "write" else store.path(held.digest)
        assert [blob.digest for blob in store.list()] == [held.digest]
    store.verify(held.digest)
    store.close()


_MEMORY = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
from pressroom.store import codec
from tests.store.family import models

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def highest(work):
    found, over = [anonymous()], threading.Event()
    before = found[0]
    def watch():
        while not over.wait(0.002):
            found.append(anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    work()
    over.set()
    thread.join()
    return max(found) - before

root = Path(sys.argv[1])
store = models.store_at(root, threads=int(sys.argv[2]))
warm = store.put_file(root / "small").digest
store.path(warm)
print(highest(lambda: store.put_file(root / "base")), flush=True)
print(highest(lambda: store.put_file(root / "child")), flush=True)
for blob in list(store.list()):
    if blob.size < 1 << 24:
        continue
    out = bytearray(blob.size)
    out[::4096] = b"x" * len(out[::4096])
    print(highest(lambda: store.read_into(blob.digest, out)), flush=True)
    del out
    print(highest(lambda: store.path(blob.digest)), flush=True)
    print(highest(lambda: store.verify(blob.digest)), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_below_64_mib_whatever_the_size(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    model = {f"w{n}": rng.standard_normal((5000, 4096)).astype(np.float32) * 0.02 for n in range(5)}
    models.model_file(tmp_path / "base", model)
    models.model_file(tmp_path / "child", tuned(model, 1))
    models.model_file(tmp_path / "small", base())
    del model
    process = started(_MEMORY, tmp_path, 2)
    out, error = process.communicate()
    assert process.returncode == 0, error
    found = [int(line) for line in out.split()]
    assert len(found) == 8
    assert max(found) < 64 << 20, [f"{n / 2**20:.0f} MiB" for n in found]
