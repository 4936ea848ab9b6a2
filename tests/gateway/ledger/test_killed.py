"""`kill -9` at random moments: what the writer was told is written is in the table once, and the sums are its sums."""

from __future__ import annotations

import collections
import random
import select
import subprocess
import sys
import time
from pathlib import Path

from .books import spending, summed, table, workspace

PROGRAM = Path(__file__).with_name("writing.py")


def killed_after(root: Path, first: str, seconds: float) -> list[list[str]]:
    """Run the program, kill it so long after it is ready (or let it end), and give what it said."""
    running = subprocess.Popen([sys.executable, PROGRAM, root, first], stdout=subprocess.PIPE)
    assert running.stdout is not None
    said = b""
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        wait = 0.5 if deadline is None else max(0.0, deadline - time.monotonic())
        if select.select([running.stdout], [], [], wait)[0]:
            some = running.stdout.read1(65_536)
            if not some:
                break
            said += some
            if deadline is None and b"ready\n" in said:
                deadline = time.monotonic() + seconds
    running.kill()
    said += running.stdout.read()
    running.stdout.close()
    assert running.wait() in (0, -9)
    return [line.split() for line in said.decode().split("\n")[:-1]]  # the last may be half a line


def test_nothing_is_lost_and_nothing_counted_twice(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    opened: set[str] = set()
    written: set[str] = set()
    told_lost: set[str] = set()
    rounds = 0
    while len(written) < 5_000 or rounds < 6:
        rounds += 1
        for line in killed_after(tmp_path, str(rounds * 100_000), chance.uniform(0.01, 1.0)):
            if line[0] in ("opened", "row", "lost"):
                {"opened": opened, "row": written, "lost": told_lost}[line[0]].add(line[1])
        if rounds % 3 == 0:
            killed_after(tmp_path, "recover", chance.uniform(0.0, 0.06))
    found = killed_after(tmp_path, "recover", 600.0)
    told_lost |= {line[1] for line in found if line[0] == "lost"}

    with workspace(tmp_path) as place:
        rows = table(place)
        ids = collections.Counter(row["id"] for row in rows)
        assert set(ids.values()) == {1}, seed
        missing = written - {row["id"] for row in rows if row["outcome"] != "lost"}
        assert not missing, (seed, missing)
        lost = {row["id"] for row in rows if row["outcome"] == "lost"}
        # Written or opened, but killed before it could say so: one of each kind in a round at most.
        assert len(ids.keys() - written - lost) <= rounds, seed
        assert opened - written - lost <= ids.keys(), seed
        assert len(lost - opened) <= rounds, seed
        assert lost == told_lost, seed
        assert spending(place) == summed(rows), seed
        assert spending(place)["all", "", "total"][0] > 0
        assert not list((place.dir / "ledger").rglob("*.journal"))
        assert table(place, "select * from ledger_opened where lost is null") == []
