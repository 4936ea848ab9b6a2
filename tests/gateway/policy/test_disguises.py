"""What a body would carry to an engine, however it is written: the text that is looked at has it in plain."""

from __future__ import annotations

from typing import Any

import pytest

from pressroom.gateway.policy._texts import Text
from pressroom.gateway.protocols.openai import CHAT
from pressroom.text import personal_data

MESSAGE = [{"role": "user", "content": "hello"}]
BACK = "\\"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": MESSAGE, "seed": 4111111111111111},
        {"messages": MESSAGE, "metadata": {"card": 4111111111111111}},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "refusal", "text": "x", "refusal": "alice@exam"},
                        {"type": "text", "text": "ple.com"},
                    ],
                }
            ]
        },
        *[
            {"messages": [{"role": "user", "content": f"alice{BACK * count}u0040example.com"}]}
            for count in (1, 2, 3, 4, 8)
        ],
        *[
            {"messages": [{"role": "user", "content": f"mail alice{at}example.com"}]}
            for at in ("%40", "&#64;", "&#x40;", "&commat;", "\\x40", "\\u{40}", "\n@", "\x00@", "\u00a0@")
        ],
        {"messages": [{"role": "user", "content": '"john smith"@x.org or 4111\n1111\n1111\n1111'}]},
        {"messages": MESSAGE, "metadata": {"phone": "5552671"}},
        {"messages": MESSAGE, "metadata": {"date_of_birth": "1990-05-12"}},
    ],
)
def test_it_is_found(fields: dict[str, Any]) -> None:
    assert personal_data(Text({"model": "m", **fields}, CHAT).whole)


def test_what_is_plain_stays_what_it_is() -> None:
    text = "50% of R&D; a path C:\\\\new\\table, seed 12"
    whole = Text({"model": "m", "messages": [{"role": "user", "content": text}], "seed": 12}, CHAT).whole
    assert text in whole
    assert not personal_data(whole)


def test_two_texts_do_not_become_one() -> None:
    said = [
        {"role": "user", "content": text} for text in ("hello jane", "@example.com", "4111", "1111", "1111", "1111")
    ]
    assert not personal_data(Text({"model": "m", "messages": said}, CHAT).whole)
