"""Whether an answer is text at all: a model that is computed wrongly says one token over and over, or noise."""

from __future__ import annotations

from collections import Counter

# Shorter than this (characters, words), and repetition is no sign of anything.
_SHORTEST = 24
_FEWEST_WORDS = 12
# What repeats: a few characters, as one token has. A small model may well say the same sentence twice.
_LONGEST_PERIOD = 12
_MOSTLY = 0.8
_NOISE = 0.1


def nonsense(text: str) -> str:
    """What is wrong with an answer, '' where nothing is. A weak answer, or a wrong one, is not nonsense."""
    said = text.strip()
    if not said:
        return "it says nothing"
    if not any(character.isalnum() for character in said):
        return "there is no letter or digit in what it says"
    noise = sum(
        character == "\ufffd" or (not character.isprintable() and not character.isspace()) for character in said
    )
    if noise > _NOISE * len(said):
        return "what it says is not text"
    words = said.split()
    if len(words) >= _FEWEST_WORDS:
        word, most = Counter(words).most_common(1)[0]
        if most >= _MOSTLY * len(words):
            return f"it says {word[:20]!r} over and over"
    repeated = _repeated(said)
    if repeated:
        return f"it says {repeated!r} over and over"
    return ""


def _repeated(said: str) -> str:
    """The few characters that most of the end of a text repeats, '' where there are none."""
    if len(said) < _SHORTEST:
        return ""
    tail = said[-max(_SHORTEST, int(_MOSTLY * len(said))) :]
    for period in range(1, _LONGEST_PERIOD + 1):
        if tail[period:] == tail[:-period]:
            return tail[-period:].strip() or tail[-period:]
    return ""
