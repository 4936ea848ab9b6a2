"""What is refused before a wish is written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.deploy import Deployments, make_wish
from pressroom.engines import engine_class
from pressroom.kernel import DeployError, EngineError, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"options": {"context": 10**23}}, "context is 100000"),
        ({"options": {"context": "many"}}, "context is many"),
        ({"options": {"slots": 10**6}}, "slots is 1000000"),
        ({"options": {"threads": -1}}, "threads is -1"),
        ({"options": {"echo.slots": "x"}}, "slots is x"),
        ({"options": {"echo.context": 1e30}}, "context is 1e+30"),
        ({"options": {"delay_s": float("inf")}}, "'delay_s' of echo is not a number"),
        ({"idle_stop_s": 0.001}, "fall asleep after 0.001 s"),
        ({"idle_stop_s": float("nan")}, "fall asleep after nan s"),
        ({"idle_stop_s": float("inf")}, "fall asleep after inf s"),
        ({"options": {"token": 7}}, "no option 'token'"),
        ({"options": {"tokens": -1}}, "'tokens' of echo is not a whole number"),
        ({"options": {"delay_s": float("nan")}}, "'delay_s' of echo is not a number"),
    ],
)
def test_what_cannot_be_is_not_written_down(workspace: Workspace, asked: dict[str, Any], says: str) -> None:
    with pytest.raises((DeployError, EngineError)) as found:
        make_wish(workspace, "echo:1", engine="echo", **asked)
    assert says in found.value.message
    assert Deployments(workspace).list() == []


@pytest.mark.parametrize(
    ("engine", "options", "says"),
    [
        ("llamacpp", {"batchh": 1}, "batch"),
        ("llamacpp", {"batch": "secret-1234"}, "not a whole number"),
        ("vllm", {"kv_cache_gib": 0}, "above 0"),
        ("vllm", {"dtype": "float8"}, "one of auto"),
        ("transformers", {"cache_mib": True}, "not a whole number"),
        ("transformers", {"attn": "best"}, "one of auto"),
    ],
)
def test_every_engine_says_what_it_takes(engine: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(EngineError) as found:
        engine_class(engine).check_options(options)
    assert says in found.value.message + found.value.hint
    assert "secret" not in found.value.message + found.value.hint


def test_zero_and_a_second_are_times_to_fall_asleep(workspace: Workspace) -> None:
    for idle_stop_s in (None, 0, 1, 3_600.0):
        assert make_wish(workspace, "echo:1", engine="echo", idle_stop_s=idle_stop_s).idle_stop_s == idle_stop_s
