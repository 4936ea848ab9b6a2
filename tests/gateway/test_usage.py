"""What a request came to, from what the engine says, and where it says nothing true."""

from __future__ import annotations

import pytest

from pressroom.gateway._usage import TEMPLATE, counts_of, token_counts, tokens_in
from pressroom.gateway.ledger import Counted


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    details = b',"prompt_tokens_details":{"cached_tokens":%d}' % cached
    return b'{"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d%b}}' % (prompt, completion, details)


def test_what_is_stated_is_read() -> None:
    assert token_counts(usage(12, 34, 5)) == (12, 34, 5)
    assert token_counts(b'{"usage":{"prompt_tokens":3,"total_tokens":3}}') == (3, 0, 0)  # an embedding
    assert token_counts(b'{"timings":{"cache_n":4,"prompt_n":6,"predicted_n":7}}') == (10, 7, 4)
    assert token_counts(b'{"choices":[]}') is None
    assert token_counts(rb'{"content":"\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}"}') is None


def test_a_plausible_usage_is_believed() -> None:
    found = counts_of(usage(12, 34, 5), size=100, most=50, before=None)
    assert found == (12, 34, 5, Counted.STATED, False)


TOLD = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"choices":[{"delta":{"content":"b"}}]}\n\n'


@pytest.mark.parametrize(
    ("stated", "prompt", "completion"),
    [
        ((10**9, 5), 100 + TEMPLATE, 5),  # more tokens than the prompt has bytes, and than could be hidden around it
        ((0, 5), 25, 5),  # a prompt of nothing
        ((10, 10**9), 10, 50),  # more than was asked for, and than can be thought
        ((10, 0), 10, 2),  # text of no tokens
    ],
)
def test_a_usage_that_lies_is_not(stated: tuple[int, int], prompt: int, completion: int) -> None:
    found = counts_of(TOLD + usage(*stated), size=100, most=50, before=0)
    assert (found.prompt, found.completion) == (prompt, completion)
    assert found.counted is Counted.COUNTED
    assert found.disputed


def test_what_a_vendor_hides_is_paid_for() -> None:
    """A prompt of its own, and thoughts: more than can be seen, and not without end."""
    found = counts_of(usage(5_000, 900), size=100, most=50, before=None)
    assert found == (5_000, 900, 0, Counted.STATED, False)


def test_an_engine_of_ones_own_is_believed() -> None:
    assert counts_of(usage(10, 300), size=100, most=1, before=None, own=True)[:2] == (10, 300)


@pytest.mark.parametrize("number", [b"7.5", b"1e30", b"99999999999999999999", b'"5"', b"-7", b"[]"])
def test_a_number_that_is_none_says_nothing(number: bytes) -> None:
    answer = b'{"usage":{"prompt_tokens":5,"completion_tokens":%b}}' % number
    found = counts_of(answer, size=100, most=50, before=None)
    assert found.counted is Counted.COUNTED
    assert found.completion <= 50


def test_an_embedding_has_no_completion() -> None:
    assert counts_of(usage(5, 10**9), size=100, most=0, before=None, embeds=True)[:2] == (5, 0)


def test_large_pieces_hold_several_tokens() -> None:
    piece = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"word " * 8_000)
    assert tokens_in(piece * 3) == 15_000


def test_more_cached_than_read_is_cut() -> None:
    assert counts_of(usage(10, 5, 99), size=100, most=0, before=None).cached == 10


def test_a_cut_stream_is_counted_by_its_pieces() -> None:
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    piece = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'
    assert tokens_in(role + piece * 3) == 3
    found = counts_of(role + piece * 3, size=400, most=0, before=7)
    assert found == (100, 10, 0, Counted.COUNTED, False)
    assert counts_of(piece * 9, size=400, most=4, before=0).completion == 4


def test_what_was_cut_before_it_began_has_a_prompt() -> None:
    assert counts_of(b"", size=400, most=0, before=None) == (100, 0, 0, Counted.COUNTED, False)
