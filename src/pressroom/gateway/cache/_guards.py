"""What two questions must share in their words, however near their vectors are.

A sentence encoder places "from A to B" beside "from B to A", "with" beside "without", "today" beside "tomorrow": nearer
than most pairs that mean the same. No threshold parts them (docs/cache.md has the figures), so words decide: what is
refused too much costs an answer, a false hit is a wrong one.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher

_NUMBER = re.compile(r"\d+(?:[.,:/\-]\d+)*")
_QUOTED = re.compile(
    r"\"([^\"]*)\"|“([^”]*)”|«([^»]*)»|„([^“”]*)[“”]|`([^`]*)`|(?<!\w)['‘]([^'’]*)['’](?!\w)|「([^」]*)」"
)
# Letters and digits of any script with their marks; C++, C# and l'eau are words.
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*(?:\+\+|#)?")
# What is between words and is not punctuation: signs of a formula, an option's hyphen, an emoji.
_SIGN = re.compile(r"[^\w\s.,;:!?'’‘\"“”«»„`()\-–—¿¡。，、？！「」]|(?<!\S)-+(?=\w)|(?<=\s)[-–—](?=\s)")

_NEGATIONS = frozenset((
    "no", "not", "never", "none", "nobody", "nothing", "neither", "nor", "nowhere", "without", "cannot", "except",
    "unless", "excluding",
    "ne", "pas", "jamais", "rien", "aucun", "aucune", "sans", "sauf", "ni",
    "nunca", "nada", "nadie", "sin", "ningún", "ninguna", "ninguno", "tampoco", "excepto",
    "nicht", "kein", "keine", "keinen", "keinem", "keiner", "keines", "nie", "niemals", "nichts", "ohne", "außer",
    "non", "mai", "niente", "nessun", "nessuno", "nessuna", "senza", "tranne",
    "não", "nem", "nenhum", "nenhuma", "sem", "exceto",
    "niet", "geen", "nooit", "zonder", "не", "нет", "никогда", "без", "кроме", "ни",
))  # fmt: skip
_NEGATION_SIGN = re.compile(r"[不没沒無无非未别別]|ない|なく|ません|ずに")
_NEGATED = ("n't", "n’t")
# Small words whose exchange changes what is asked.
_TELLING = frozenset((
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "dozen",
    "hundred", "thousand", "million", "billion", "half", "quarter", "double", "twice", "first", "second", "third",
    "last", "next", "previous", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday",
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december", "today", "tomorrow", "yesterday", "before", "after", "on", "off", "in", "out", "up", "down", "to",
    "from", "over", "under", "above", "below", "more", "less", "most", "least", "who", "when", "where", "why",
))  # fmt: skip

# Names that are small words in small letters: doubled, they are no such word.
_ACRONYM = re.compile(r"\b(IT|US|WHO|AM|PM|OR|IN|ON|NO|ME|LA|UN|DO|IS|AN|OS|AS|EL|DAS|ALL|CAN|MAY)\b")

# What may differ between two ways to ask the same: politeness, articles, the little verbs of a question.
_POLITE = re.compile(
    r"^(?:hi|hello|hey|please|kindly|ok|okay|so)\b[\s,!.]*"
    r"|^(?:can|could|would|will) you (?:please |kindly )?(?=(?:tell|explain|show|give|write|list|describe|define)\b)"
    r"|^(?:tell me|(?:i would|i'd|we would) like to know|i (?:want|need) to know|do you know|let me know)\b[\s:,]*"
    r"|\b(?:please|thank you|thanks|por favor|bitte|s'il (?:vous|te) plaît|svp|per favore)\b[\s,!.]*"
)
_HOW = (
    (re.compile(r"\bhow (?:(?:do|can|could|would|might) (?:i|we|you|one)|to)\b"), "how"),
    (re.compile(r"\bcomment (?:puis[- ]je|peut[- ]on|est-ce que je peux|faire pour)\b"), "comment"),
    (re.compile(r"\b(?:cómo|como) (?:puedo|podría|posso)\b"), "cómo"),
    (re.compile(r"\bcome (?:posso|si può)\b"), "come"),
    (re.compile(r"\b(what|who|where|when|how|that|it)['’]s\b"), r"\1 is"),
    (re.compile(r"\bcan['’]t\b"), "cannot"),
)
_FILLERS = frozenset((
    "a", "an", "the", "is", "are", "do", "does", "what", "le", "la", "les", "une", "el", "los", "las", "der", "das",
    "eine",
))  # fmt: skip


def alike(one: str, other: str, *, same_words: bool) -> bool:
    """Whether the answer to `one` may do for `other`: numbers, negations, quoted words and signs are equal, what both
    name is named in the same order, and no word stands where the other has another one. With `same_words` nothing but
    filling words may differ at all."""
    one, other = _plain(one), _plain(other)
    if _NUMBER.findall(one) != _NUMBER.findall(other) or _SIGN.findall(one) != _SIGN.findall(other):
        return False
    if _QUOTED.findall(one.casefold()) != _QUOTED.findall(other.casefold()):
        return False
    mine, others = _words(one), _words(other)
    if same_words:
        return mine == others
    return (
        _negations(one, mine) == _negations(other, others) and _in_order(mine, others) and not _exchanged(mine, others)
    )


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _words(text: str) -> list[str]:
    """The words of a text that say what it is about, in small letters."""
    low = (text if text.isupper() else _ACRONYM.sub(r"\1\1", text)).lower()
    for pattern, plain in _HOW:
        low = pattern.sub(plain, low)
    before = ""
    while before != low:  # a greeting may stand before a plea
        before, low = low, _POLITE.sub("", low)
    return [word for word in _WORD.findall(low) if word not in _FILLERS]


def _negations(text: str, words: list[str]) -> list[str]:
    found = ["not" if word.endswith(_NEGATED) else word for word in words]
    return [word for word in found if word in _NEGATIONS or word in _TELLING] + _NEGATION_SIGN.findall(text)


def _in_order(one: list[str], other: list[str]) -> bool:
    """Whether the words that both have are in the same order, repeated ones as often."""
    common = set(one) & set(other)
    return [word for word in one if word in common] == [word for word in other if word in common]


def _exchanged(one: list[str], other: list[str]) -> bool:
    """Whether words are exchanged for others: as many, or between words that are equal. Whether these are synonyms or
    the contrary is what vectors do not tell."""
    opcodes = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    for number, (kind, start, end, other_start, other_end) in enumerate(opcodes):
        if kind == "replace" and (end - start == other_end - other_start or 0 < number < len(opcodes) - 1):
            return True
    return False
