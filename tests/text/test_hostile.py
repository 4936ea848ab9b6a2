"""Hostile texts take time in proportion to their length."""

from __future__ import annotations

import time

import pytest

from pressroom.text import language_of, personal_data, redacted, secrets_in

UNITS = [
    "1", "4", "4 ", "4444 ", "1.", "1-", "0", "01 ", "+1", "+", "(", "(1", "@", "a@", "a@a.", "a.a@a.", "@a-",
    " at ", "(at)", " dot a at b", "a", "A1", "GB82", "DE89 ", "ab12", ":", "::", "a:", "1:", "fe80:", "born 1 ",
    "born 1.1.", "1. ", "password", "password=", "pass: ", "password is ", "key=\"", "='a", "://", "://a:",
    "://a:b@", "-----BEGIN PRIVATE KEY-----", "eyJ", "eyJ-", "eyJa.", "eyJaaaaaaaaaaaa.aa.", "sk-", "sk-a", "gh",
    "ghp_", "AKIA", "curl -u ", "curl ", "bearer ", "Basic a", "\u200b", "1\u200b", "４", "é1", "12 May ", "1/1/",
    "0/", "-", " ", "@ ", " @", "a@\n", "\n@a.com", "\"@", "\"@a.com", "@a\u3002", "\\", "\\x40", "\\u{0", "\\\\x",
    "%40", "&#0", "&#64;", "4444.", "4444_", "4444\n", "4444\r\n", "4.", "4_", "DE89\n", "DE89.3704.", "DE89/",
    "\u00b2", "4\u2460", "\u0336", "a\u0336", "\x01", "4\x01", "\u24d0", "4444\u00b7", "\U0001f150",
]  # fmt: skip


def seconds(text: str) -> float:
    best = 1e9
    for _ in range(2):
        start = time.process_time()
        personal_data(text)
        secrets_in(text)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("unit", UNITS)
def test_four_times_the_text_takes_about_four_times_as_long(unit: str) -> None:
    small, large = (unit * (size // len(unit)) for size in (8_000, 32_000))
    # 16 times as long would be quadratic; a few milliseconds are the machine's own doing.
    assert seconds(large) < 9 * seconds(small) + 0.02


def test_long_texts_of_everything() -> None:
    text = "".join(UNITS) * 20
    assert redacted(redacted(text)) == redacted(text)
    assert language_of(text * 10)
