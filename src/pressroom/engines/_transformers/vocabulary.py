"""The tokens of a model as bytes, and text as tokens."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, Protocol

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
# Tokens that a window keeps before the new ones, so that a decoder sees the same surroundings (WordPiece, Metaspace).
_BEFORE = 6
# Replacement characters at the end of a window that a later token may still turn into a character.
_UNFINISHED = 3


class Decoder(Protocol):
    """Text of one answer, token by token: `push` gives what is certain now, `rest` what is left at the end."""

    def push(self, token: int) -> str: ...

    def rest(self) -> str: ...


class Vocabulary:
    """A tokenizer with what serving needs of it. Thread-safe for reading."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer = tokenizer
        #: Rows of the model's output, which may be more than there are tokens.
        self.size = size
        self.special = frozenset(tokenizer.all_special_ids)
        # The library itself, where it is the fast one: its wrapper changes its state at every call, and two threads at
        # once are then an error. A folder may ask for cutting and filling; nothing is cut here.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._pieces: dict[int, bytes] = {}
        self._kind, self._strip = _decoding(tokenizer)
        #: Characters of the longest token: more text than this times the context cannot fit into it.
        self.longest = max((len(token) for token in tokenizer.get_vocab()), default=1)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a text; `special` adds those that the tokenizer puts around it."""
        if self._backend is not None:
            return list(self._backend.encode(text, add_special_tokens=special).ids)
        return list(self.tokenizer.encode(text, add_special_tokens=special))

    def decoder(self, *, skip_special: bool = True) -> Decoder:
        """For one answer."""
        if self._kind is None:
            return _Windowed(self, skip_special)
        return _Bytes(self, skip_special, strip=self._strip)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for: those of a part of a character, where it is one."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._piece(token)
        return found

    def shown(self, token: int) -> str:
        """A token as the text of a log-probability."""
        return self.piece(token).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        text = self.tokenizer.convert_ids_to_tokens(token)
        if text is None:
            return b""  # the model's output has rows that no token belongs to
        if self._kind == "level":
            table = _byte_level()
            if all(character in table for character in text):
                return bytes(table[character] for character in text)
        elif self._kind == "pieces":
            byte = _BYTE_PIECE.match(text)
            if byte:
                return bytes((int(byte[1], 16),))
            if token not in self.special:
                text = text.replace("▁", " ")
        else:
            text = self.tokenizer.decode([token])
        return str(text).encode("utf-8", "replace")


class _Bytes:
    """For tokenizers whose tokens are pieces of a row of bytes: exact, and the same cost for every token."""

    def __init__(self, vocabulary: Vocabulary, skip_special: bool, *, strip: bool) -> None:
        self._vocabulary = vocabulary
        self._skipped = vocabulary.special if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = strip

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        piece = self._vocabulary.piece(token)
        if self._strip and piece:
            # These tokenizers put a space before the first word, and take it away when they decode.
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._decoder.decode(piece)

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Windowed:
    """For every other tokenizer: decodes the last tokens again and compares."""

    def __init__(self, vocabulary: Vocabulary, skip_special: bool) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._skipped = vocabulary.special if skip_special else frozenset()
        self._window: list[int] = []
        self._sent = 0

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        self._window.append(token)
        text = self._decoded(self._window)
        held = len(text) - len(text.rstrip("\ufffd"))
        certain = text[: len(text) - min(held, _UNFINISHED)]
        said = certain[self._sent :]
        self._sent = max(self._sent, len(certain))
        if (not held and len(self._window) > 2 * _BEFORE) or len(self._window) > 8 * _BEFORE:
            waiting = len(text) - len(certain)
            self._window = self._window[-_BEFORE:]
            self._sent = max(0, len(self._decoded(self._window)) - waiting)
        return said

    def rest(self) -> str:
        return self._decoded(self._window)[self._sent :]


def _decoding(tokenizer: Any) -> tuple[str | None, bool]:
    """How tokens become text: `level` (bytes as letters), `pieces` (▁ and <0x41>), or None for another way; and whether
    the space before the first word goes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None, False
    decoder = json.loads(backend.to_str()).get("decoder")
    steps = (decoder or {}).get("decoders", [decoder]) if decoder else []
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "level", False
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        replaced = steps[0].get("pattern") == {"String": "▁"} and steps[0].get("content") == " "
        stripped = kinds[3:] == ["Strip"]
        usual = not stripped or (steps[3].get("content"), steps[3].get("start"), steps[3].get("stop")) == (" ", 1, 0)
        if replaced and usual:
            return "pieces", stripped
    return None, False


_LEVEL: dict[str, int] = {}


def _byte_level() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for code points from 256 on."""
    if not _LEVEL:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        _LEVEL.update({chr(byte): byte for byte in printable})
        _LEVEL.update({chr(256 + at): byte for at, byte in enumerate(others)})
    return _LEVEL
