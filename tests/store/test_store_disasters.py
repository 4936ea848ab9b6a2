"""What a directory store leaves behind when its process is killed, the disk is full, or it may not be written."""

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
from pressroom.store.backends.file import Backend

# Puts one blob after another, some again, and says each digest once it was told that the bytes are durable.
_PUTTER = """
import random, sys
from pathlib import Path
from pressroom.store.backends.file import Backend

store = Backend("file://store", root=Path(sys.argv[1]))
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    content = random.Random(number % 7).randbytes(1 << 20)
    print(store.put(content[i : i + 300_000] for i in range(0, 1 << 20, 300_000)).digest, flush=True)
    number += 1
"""

# Runs in a mount namespace of its own, so that the small disk is gone with the process. argv: directory, script.
_ON_A_SMALL_DISK = """
import json, sys
from pathlib import Path
from pressroom.kernel import StoreError
from pressroom.store.backends.file import Backend

root = Path(sys.argv[1])
store = Backend("file://store", root=root)

def attempt(*arguments, **declared):
    try:
        return {"digest": store.put(*arguments, **declared).digest}
    except StoreError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint, **error.facts}

def left():
    return [path.name for path in (root / "store/tmp").iterdir()]

def endless():
    while True:
        asked.append(len(left()))
        yield b"x" * 100_000

asked = []
"""


def test_kill_minus_9_while_putting(tmp_path: Path) -> None:
    rng = random.Random(9)
    announced: set[str] = set()
    for round in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", _PUTTER, str(tmp_path), str(round)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.06))
        process.kill()
        # A line may be cut by the kill; what was said whole was kept.
        announced.update(line.strip() for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n")
        process.wait()
        process.stdout.close()
        store = Backend("file://store", root=tmp_path)
        held = {blob.digest for blob in store.list()}
        assert announced <= held
        for digest in held:
            store.verify(digest)
        temporary = tmp_path / "store/tmp"
        assert not temporary.exists() or list(temporary.iterdir()) == []
    assert announced, "every process was killed before it could put anything"


def _small_disk(tmp_path: Path, script: str, *, options: str = "size=1m") -> Any:
    """What `script` prints as JSON, run where `tmp_path/disk` is a disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$1" -c "$2" "$0"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if sys.platform != "linux" or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a user mount a small disk")
    ran = subprocess.run(
        [*unshare, "sh", "-c", command, str(disk), sys.executable, _ON_A_SMALL_DISK + script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_full_disk_that_the_size_foretells(tmp_path: Path) -> None:
    said = _small_disk(tmp_path, "print(json.dumps([attempt(endless(), size=5_000_000), asked, left()]))")
    refused, asked, left = said
    assert refused["error"] == "StoreFullError"
    assert refused["needed"] == 5_000_000
    assert 0 < refused["free"] <= 1 << 20
    assert "5 MB" in refused["message"]
    assert refused["hint"]
    assert asked == []
    assert left == []


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path) -> None:
    script = """
small = attempt([b"y" * 200_000])
refused = attempt(endless())
again = attempt([b"y" * 200_000], expected=small["digest"], size=200_000)
other = attempt([b"z" * 200_000])
(root / "filler").write_bytes(b"." * 600_000)
held_on_full_disk = attempt([b"y" * 200_000], expected=small["digest"])
held = sorted(blob.digest for blob in store.list())
print(json.dumps([small, refused, again, other, held_on_full_disk, held, asked, left()]))
"""
    small, refused, again, other, held_on_full_disk, held, asked, left = _small_disk(tmp_path, script)
    assert refused["error"] == "StoreFullError"
    assert refused["needed"] is None
    assert "full" in refused["message"]
    assert len(asked) > 5
    assert again == small == held_on_full_disk
    assert held == sorted([small["digest"], other["digest"]])
    assert left == []


def test_a_disk_that_may_only_be_read(tmp_path: Path) -> None:
    script = """
import os, subprocess
kept = attempt([b"kept"])
(root / "store/tmp/0.part").write_bytes(b"left over")
subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
store = Backend("file://store", root=root)
store.verify(kept["digest"])
print(json.dumps([attempt([b"x"]), kept, [blob.digest for blob in store.list()]]))
"""
    refused, kept, held = _small_disk(tmp_path, script)
    assert refused["error"] == "StoreError"
    assert "Read-only" in refused["message"]
    assert "store" in refused["hint"]
    assert held == [kept["digest"]]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["os.write", "sync"])
def test_a_quota_or_a_disk_that_is_full_when_it_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    """No disk here has a quota or allocates late, so the system's answer is put in its mouth."""
    store = Backend("file://store", root=tmp_path)

    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"pressroom.store.places.file.{call}", full)
        with pytest.raises(StoreFullError) as caught:
            store.put([b"x" * 100], size=100)
    assert caught.value.facts["needed"] == 100
    assert caught.value.facts["free"] > 0
    assert list((tmp_path / "store/tmp").iterdir()) == []
    assert list(store.list()) == []


def test_another_failure_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Backend("file://store", root=tmp_path)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken)
        with pytest.raises(StoreError, match="Input/output error") as caught:
            store.put([b"x"])
    assert not isinstance(caught.value, StoreFullError)
    assert list((tmp_path / "store/tmp").iterdir()) == []
