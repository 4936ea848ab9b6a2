"""All the text that a request would carry to an engine, wherever in the body it stands."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from pressroom.gateway.protocols.openai import Endpoint

# What the routing reads at most (characters). Reading takes time of the event loop that everybody shares.
MOST_READ = 1_048_576
# A token stands for about as many characters.
_OF_TOKEN = 4
# Fields of token ids: numbers in them are nobody's.
_TOKENS = frozenset(("allowed_token_ids", "logit_bias", "stop_token_ids"))
_LONGEST_TOKEN = 10
# A number of fewer digits is nobody's.
_LONG_NUMBER = 1_000_000
_CODE = re.compile(r"\\u([0-9a-fA-F]{4})")
_RUN = re.compile(r"\\{2,}")
# As addresses of the web and pages write what is not plain.
_PERCENT = re.compile(r"%[0-9a-fA-F]{2}")
_ENTITY = re.compile(r"&(?:#\d|#[xX]|[a-zA-Z])")
_ESCAPES = (
    ("\\n", "\n"),
    ("\\r", "\r"),
    ("\\t", "\t"),
    ("\\b", " "),
    ("\\f", " "),
    ('\\"', '"'),
    ("\\/", "/"),
    ("\\\\", "\\"),
)
# Between two texts, so that they do not become one that nobody wrote: an address or a number may go over an end of a
# line, but not over this. A name and its value stay near each other.
_APART = "\n|"
# JSON within JSON: as often as this is a text unwrapped.
_WRAPPED = 3


class Text:
    """The text of one request. `characters` counts what the messages, the prompts or the inputs say; `unreadable` tells
    that there is more than is here: token ids, or more characters than are looked at."""

    __slots__ = ("characters", "said", "unreadable", "whole")

    def __init__(self, fields: dict[str, Any], endpoint: Endpoint) -> None:
        #: What the messages, the prompts or the inputs say, each for itself.
        self.said: list[str] = []
        pieces: list[str] = []
        given = fields.get(endpoint.conversation)
        tokens = _conversation(given, self.said)
        _collect(fields, pieces)
        self.characters = sum(map(len, self.said)) + _OF_TOKEN * tokens
        long = self.characters + sum(map(len, pieces)) > MOST_READ
        self.unreadable = long or tokens > 0
        if long:
            self.whole = ""
            return
        pieces += self.said
        pieces += [unwrapped for piece in pieces if "\\" in piece for unwrapped in _unwrapped(piece)]
        pieces += [unquote(piece) for piece in pieces if "%" in piece and _PERCENT.search(piece)]
        pieces += [unescape(piece) for piece in pieces if "&" in piece and _ENTITY.search(piece)]
        self.whole = _APART.join(pieces)


def _conversation(given: Any, said: list[str]) -> int:
    """Puts what is said into `said`; the number of tokens that stand there as numbers."""
    if isinstance(given, str):
        said.append(given)
        return 0
    tokens = 0
    for item in given if isinstance(given, list) else ():
        if isinstance(item, str):
            said.append(item)
        elif isinstance(item, int):
            tokens += 1
        elif isinstance(item, list):
            tokens += len(item)
        elif isinstance(item, dict):
            content = item.get("content")
            if isinstance(content, str):
                said.append(content)
            elif isinstance(content, list):
                # Engines put the parts of a message together: so must who looks for what goes over a seam.
                joined = "".join(_part(part, "text", "refusal") for part in content)
                said.append(joined)
                other = "".join(_part(part, "refusal", "text") for part in content)
                if other != joined:
                    said.append(other)
    return tokens


def _part(part: Any, first: str, second: str) -> str:
    said = (part.get(first) or part.get(second) or "") if isinstance(part, dict) else part
    return said if isinstance(said, str) else ""


def _collect(fields: dict[str, Any], pieces: list[str]) -> None:
    """Every string and every long number below `fields`, but for contents that are one string, and prompts."""
    below: list[Any] = []
    for name, value in fields.items():
        if name in ("prompt", "input"):
            continue
        if name == "messages" and isinstance(value, list):
            for message in value:
                if isinstance(message, dict):
                    # A part may have more in it than its text.
                    below += [rest for key, rest in message.items() if key != "content" or not isinstance(rest, str)]
        elif isinstance(value, str):
            pieces.append(value)
        elif isinstance(value, int | float):
            if abs(value) >= _LONG_NUMBER:
                pieces.append(repr(value))
        elif isinstance(value, dict | list):
            if name in _TOKENS:
                _walk([value], pieces, numbers=False)
            else:
                below.append(value)
    _walk(below, pieces, numbers=True)


def _walk(waiting: list[Any], pieces: list[str], *, numbers: bool) -> None:
    """Without recursion: a body may be nested deeper than Python's stack."""
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            pieces.append(value)
        elif isinstance(value, dict):
            pieces += [key for key in value if numbers or not key.isdigit() or len(key) > _LONGEST_TOKEN]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif numbers and isinstance(value, int | float) and abs(value) >= _LONG_NUMBER:
            pieces.append(repr(value))


def _unwrapped(piece: str) -> list[str]:
    """The same without JSON's escapes, as often as there are some: the arguments of a call are JSON in a string."""
    found = []
    # However often its backslashes were doubled on the way.
    single = _RUN.sub(r"\\", piece)
    if single != piece:
        found.append(single)
        found += _unwrapped(single)
    for _ in range(_WRAPPED):
        plain = _CODE.sub(_character, piece) if "\\u" in piece else piece
        for escaped, meant in _ESCAPES:
            plain = plain.replace(escaped, meant)
        if plain == piece:
            break
        found.append(plain)
        piece = plain
    return found


def _character(match: re.Match[str]) -> str:
    code = int(match.group(1), 16)
    return " " if 0xD800 <= code < 0xE000 else chr(code)  # half of a character is none
