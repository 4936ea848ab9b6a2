"""Redacted text holds nothing that was found, and is not changed by redacting it again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.text import personal_data, redacted, secrets_in

PIECES = [
    "jane@example.com", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "+49 30 901820", "0171 2345678",
    "203.0.113.9", "born 1990-05-12", "123-45-6789", "password=hunter2", "https://u:pa55@h/", "AKIAIOSFODNN7EXAMPLE",
    "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "2024", "\u200b", "，", "x", "12", "://", "@", "=",
]  # fmt: skip


def test_marks() -> None:
    text = "I am jane@example.com, card 4111 1111 1111 1111, password=hunter2, https://u:pa55@h/ born 1990-05-12"
    assert redacted(text) == "I am [EMAIL], card [CARD], password=[SECRET], https://[SECRET]@h/ born [BIRTH_DATE]"


def test_text_with_nothing_in_it_is_the_same_object() -> None:
    text = "nothing to see"
    assert redacted(text) is text


def test_a_secret_that_looks_like_an_address_is_a_secret() -> None:
    assert redacted("ftp://bob:pw@host.example.com/x") == "ftp://[SECRET]@host.example.com/x"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8), st.sampled_from(["", " ", ", ", "\n"]))
def test_nothing_is_left_and_twice_is_once(pieces: list[str], between: str) -> None:
    once = redacted(between.join(pieces))
    assert redacted(once) == once
    assert personal_data(once) == []
    assert secrets_in(once) == []


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_findings_lie_in_the_text_in_order_and_apart(text: str) -> None:
    for find in (personal_data, secrets_in):
        end = 0
        for one in find(text):
            assert end <= one.start < one.end <= len(text)
            end = one.end
