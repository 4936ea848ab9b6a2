"""Files of results: mended after any cut; and what is looked at once does not gather."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pressroom.gateway.batches._checking import check
from pressroom.gateway.batches._ledger import Ledger
from pressroom.gateway.batches._results import ResultFile
from pressroom.gateway.batches.base import Line, Outcome
from pressroom.kernel import StoreFullError

from .serving import CHAT, jsonl, line


def outcome(number: int, status: int = 200, body: Any = None) -> Outcome:
    at = Line(number, f"r{number}", CHAT, b"{}", f"abc_{number:08x}")
    return Outcome(at, status, "req_1", body if body is not None else {"text": f"{number} \n line"})


def test_a_file_cut_at_any_byte_is_whole_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    file = ResultFile(path)
    file.append(outcome(n) for n in range(3))
    file.close()
    data = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut] + (b"\0" * 9 if cut % 2 else b""))
        seen: list[dict[str, Any]] = []
        file = ResultFile(path)
        file.recover(seen.append)
        whole = sum(end <= cut for end in ends)
        assert [record["custom_id"] for record in seen] == [f"r{n}" for n in range(whole)]
        file.append([outcome(7)])
        file.close()
        written = [json.loads(one)["custom_id"] for one in path.read_bytes().splitlines()]
        assert written == [f"r{n}" for n in range(whole)] + ["r7"]


def test_a_ledger_knows_what_is_done(tmp_path: Path) -> None:
    lines = [Line(n, f"r{n}", CHAT, b"{}", f"abc_{n:08x}") for n in range(10)]
    usage = {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}}
    ledger = Ledger(tmp_path / "o", tmp_path / "e", total=10)
    ledger.take([outcome(4, body=usage), outcome(2, 400), outcome(9, body=usage)])
    ledger.close()
    again = Ledger(tmp_path / "o", tmp_path / "e", total=10)
    assert [one.number for one in again.left(lines)] == [0, 1, 3, 5, 6, 7, 8]
    assert again.counts == ledger.counts
    assert (again.counts.completed, again.counts.failed, again.counts.input_tokens) == (2, 1, 6)
    again.close()
    again.take([outcome(0)])  # a thread that nobody waits for any more
    assert len((tmp_path / "o").read_bytes().splitlines()) == 2


def test_an_answer_nested_too_deep_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    file = ResultFile(tmp_path / "out")
    file.append([outcome(0, body=deep), outcome(1)])
    file.close()
    first, second = (json.loads(one) for one in (tmp_path / "out").read_bytes().splitlines())
    assert first["response"] is None and first["error"]["code"] == "unreadable_answer" and second["response"]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    file = ResultFile(Path("/dev/full"))
    with pytest.raises(StoreFullError, match="no room"):
        file.append([outcome(0)])
    file.close()


def test_lines_do_not_gather_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "in"
    with path.open("wb") as file:
        for n in range(20_000):
            file.write(jsonl([line(n, "x" * 1_000)]))
    tracemalloc.start()
    try:
        found = check(path, CHAT, line_limit=1 << 20, wanted=lambda: True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.total == 20_000 and not found.problems
    assert path.stat().st_size > 20_000_000 and peak < 6_000_000
