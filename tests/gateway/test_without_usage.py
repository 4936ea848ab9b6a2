"""A stream whose usage the gateway asked for and the client did not: the client sees none of it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway import Route
from pressroom.gateway._receivers import WithoutUsage, with_usage
from pressroom.gateway.problems import Problem

ROUTE = Route(model="m")
PIECES = [
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}\n\n',
    b'data: {"choices":[{"delta":{"content":"a \\n\\n \\"choices\\":[] b"}}],"usage":null}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
]
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"


class Heard:
    def __init__(self) -> None:
        self.bytes = b""
        self.end_: Any = None

    def whole(self, body: bytes, route: Route) -> None:
        self.bytes, self.end_ = body, "whole"

    def begin(self, route: Route) -> None: ...

    def data(self, data: bytes) -> None:
        assert data
        self.bytes += data

    def end(self) -> None:
        self.end_ = "end"

    def failed(self, problem: Problem) -> None:
        self.end_ = problem


@given(st.lists(st.integers(0, 600), max_size=12))
def test_however_it_is_cut(cuts: list[int]) -> None:
    stream = b"".join(PIECES) + USAGE + DONE
    heard = Heard()
    receiver = WithoutUsage(heard)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for begin, end in itertools.pairwise(edges):
        if begin < end:
            receiver.data(stream[begin:end])
    receiver.end()
    assert heard.bytes == b"".join(PIECES) + DONE
    assert heard.end_ == "end"


def test_an_event_without_choices_that_is_no_usage_goes_through() -> None:
    heard = Heard()
    first = b'data: {"choices":[],"prompt_filter_results":[1]}\n\n'
    WithoutUsage(heard).data(first + USAGE)
    assert heard.bytes == first


def test_what_is_no_event_is_not_kept() -> None:
    heard = Heard()
    receiver = WithoutUsage(heard)
    for _ in range(100):
        receiver.data(b"x" * 10_000)
    assert len(heard.bytes) > 900_000
    receiver.failed(Problem(502, "it broke"))
    assert len(heard.bytes) == 1_000_000


@pytest.mark.parametrize("body", [b'{"model":"m","stream":true}', b' {"model": "m", "stream": true } \r\n'])
def test_the_wish_is_put_into_the_body(body: bytes) -> None:
    wished = json.loads(with_usage(body))
    assert wished == {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
