"""What in a text opens something: keys, tokens and passwords."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import log2

from pressroom.text._plain import place, plain
from pressroom.text._token_kinds import KINDS
from pressroom.text.findings import Finding, disjoint

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/=.~%"
# Bytes that a token is made of become 'a', all others ' ': that there is no long token is seen without a pattern.
_SHAPE = bytes(97 if code in _LETTERS else 32 for code in range(256))
_LONG = b"a" * 16

_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BODY = re.compile(r"(?:[A-Za-z0-9+/=\s:,.()-]|\\[nrt])*+")
_KEY_LONGEST = 14 * 1024

# user:password@ behind the scheme of an address; what is to be filled in, or was already taken out, is none.
_IN_ADDRESS = re.compile(r"://([^\s/@:\"'<>\[\]]{0,128}:(?![$%{<*\[])[^\s/@\"'<>\[\]]{1,256})@[^\s/@]")
_BEARER = re.compile(r"\b(?:bearer|basic) {1,2}([A-Za-z0-9+/=._~-]{16,4096})(?![A-Za-z0-9])", re.IGNORECASE)
_BEARERS = ("earer ", "BEARER ", "Basic ", "basic ", "BASIC ")
_CURL = re.compile(r"\bcurl\b[^\n|]{0,120}?\s(?:-u|--user)[ =]?['\"]?([^\s:'\"$]{1,64}:[^\s'\"$]{1,128})")

# NAME = value: found at the sign between them, and the name looked back for.
_ASSIGNED = re.compile(
    r"[=:](?:[=>](?!=))?[ \t]{0,4}(?:([\"'`])([^\s\"'`]{6,200})\1|(?![\"'`$<{(\[*%&])([^\s\"'`,;<>(){}\[\]$]{6,200}))"
)
_CHOSEN = (
    r"passw(?:or)?d|passwort|kennwort|passphrase|passcode|pwd|contraseña|mot[ _]de[ _]passe|senha|пароль|密码|密碼"
    r"|パスワード"
)
_NAMES = re.compile(
    rf"(?:(?P<password>{_CHOSEN}|(?<![a-z])pass|(?<![a-z])pin)"
    r"|(?:api|access|secret|private|auth|encryption|signing|account|shared[_-]?access|master|storage)[_ .-]?key|apikey"
    r"|secret|(?:access|auth|bearer|refresh|session|id|api|private|bot)[_ .-]?token|(?<![a-z])token|credentials?"
    r"|authorization|webhook|(?<![a-z])sig)[\"'`\])]{0,2}[ \t]{0,2}\Z",
    re.IGNORECASE,
)
# How the names end, in three letters: looked at before the pattern, which is slow.
_ENDINGS = "ord ort ase ode pwd ass pin key ret ken ial als ion ook sig eña sse nha оль ード"
_SAID = re.compile(
    rf"(?:{_CHOSEN})(?: is| ist| est| es| é| lautet|是|は|为)?[ :：]{{1,2}}[\"'`“«]?([^\s\"'`”»,;()\[\]]{{6,100}})",
    re.IGNORECASE,
)
_SAID_STEMS = ("passw", "passphrase", "passcode", "mot de passe", "kennwort", "senha", "contrase")
_SAID_STEMS_ABROAD = ("пароль", "密码", "密碼", "パスワード")
_FILLED_IN = re.compile(
    r"x{4,}|\.{3}|\*{3}|\A(?:example|placeholder|your|my[_-]|change[_-]?me|dummy|redacted|insert|replace|todo|undefined)",
    re.IGNORECASE,
)
_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_IDENTIFIER = re.compile(r"[A-Za-z_][\w]*(?:[.:/-]+[A-Za-z_]\w*)*[.:]?")


def secrets_in(text: str) -> list[Finding]:
    """Keys, tokens and passwords, by place; no two overlap. Kinds: `private-key`, `token` (of a known maker),
    `password` (assigned to a name for one, or said to be one), `url-password` (user and password in an address).

    It takes time in proportion to the text; see `in_pieces` for long ones."""
    looked_at, layers, _ = plain(text, escapes=False)
    found = list(_look(looked_at))
    if not found:
        return found
    kept = disjoint(found)
    return [Finding(one.kind, *place(one.start, one.end, layers)) for one in kept] if layers else kept


def _look(text: str) -> Iterator[Finding]:
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    if _LONG in text.encode("utf-8", "replace").translate(_SHAPE):
        yield from _tokens(text)
    if "@" in text and "://" in text:
        for match in _IN_ADDRESS.finditer(text):
            yield Finding("url-password", *match.span(1))
    if "=" in text or ":" in text:
        for match in _ASSIGNED.finditer(text):
            start = match.start()
            ending = text[max(0, start - 8) : start].rstrip(" \t\"'`])")[-3:].lower()
            if (len(ending) < 2 or ending not in _ENDINGS) and ending[-1:] not in ("码", "碼"):
                continue
            name = _NAMES.search(text, max(0, start - 32), start)
            group = 2 if match[2] else 3
            if name and _is_secret(match[group], quoted=group == 2, password=bool(name["password"])):
                yield Finding("password", *match.span(group))
    lower = text.lower()
    yield from _said(text, lower)
    if "curl" in lower:
        for match in _CURL.finditer(text):
            if not match[1].replace(":", "").isdigit():
                yield Finding("url-password", *match.span(1))


def _said(text: str, lower: str) -> Iterator[Finding]:
    """Passwords in a sentence: 'my password is …'."""
    if len(lower) != len(text):  # a letter whose small form is longer: places would not agree
        lower = text
    stems = _SAID_STEMS if "pass" in lower else _SAID_STEMS[4:]
    for stem in stems if text.isascii() else (*stems, *_SAID_STEMS_ABROAD):
        position = lower.find(stem)
        while position >= 0:
            match = _SAID.match(text, position)
            if match:
                end = match.end(1) - (match[1][-1] in ".!?")
                said = text[match.start(1) : end]
                if any(map(str.isdigit, said)) and _is_secret(said, quoted=False, password=True):
                    yield Finding("password", match.start(1), end)
            position = lower.find(stem, position + 1)


def _tokens(text: str) -> Iterator[Finding]:
    for marker, pattern in KINDS:
        if marker in text:
            for match in pattern.finditer(text):
                yield Finding("token", *match.span())
    if any(word in text for word in _BEARERS):
        for match in _BEARER.finditer(text):
            if _is_mixed(match[1]):
                yield Finding("token", *match.span(1))


def _private_keys(text: str) -> Iterator[Finding]:
    position = 0
    while begin := _KEY_BEGIN.search(text, position):
        body = _KEY_BODY.match(text, begin.end(), begin.end() + _KEY_LONGEST)
        end = body.end() if body else begin.end()
        # The dashes of the last line belong to what the body may be made of.
        last = _KEY_END.search(text, begin.end(), end + 80)
        position = last.end() if last else end
        yield Finding("private-key", begin.start(), position)


def _is_secret(value: str, *, quoted: bool, password: bool) -> bool:
    """Whether a value is one that somebody chose or drew, and not code, a sentence or what stands for one."""
    if _FILLED_IN.search(value) or len(set(value)) < 4:
        return False
    if _PATH.fullmatch(value) or (not quoted and _IDENTIFIER.fullmatch(value) and not any(map(str.isdigit, value))):
        return False
    bits = _bits(value)
    if password:
        # 'hunter2' has 20 bits; words alone are more often a label than a password.
        return bits >= 15 and (value.isdigit() or not value.isalpha() or _is_mixed(value))
    return len(value) >= 16 and bits >= 45 and any(map(str.isdigit, value)) and not value.isdigit()


def _is_mixed(value: str) -> bool:
    """Digits among letters, or capitals in the middle of words: nothing that is read aloud."""
    digits = sum(map(str.isdigit, value))
    capitals = sum(one.isupper() for one in value[1:])
    return 0 < digits < len(value) or (2 <= capitals < len(value) - 1 and not value.isupper())


def _bits(value: str) -> float:
    """Shannon's entropy of the value by its own letters, for all of it."""
    length = len(value)
    return length * log2(length) - sum(count * log2(count) for count in Counter(value).values())
