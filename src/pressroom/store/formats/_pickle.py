"""Knowing a pickle by its first bytes and by its name. Nothing here unpickles, or steps through a pickle's opcodes.

Safety does not rest on this: what is not GGUF or safetensors is refused whatever it is. It decides what the reader is
told, and it names the files of a folder that no engine must be given.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# Names under which pickles are published. `.npy` and `.npz` are not here: most hold plain numbers, their content tells.
_NAMES = frozenset(
    (".bin", ".ckpt", ".cpickle", ".dill", ".joblib", ".p", ".pck", ".pickle", ".pkl", ".pt", ".pth", ".t7")
)
_WRAPPINGS = frozenset((".bz2", ".gz", ".lz4", ".lzma", ".xz", ".z", ".zst"))

# Protocol 2 and later begin with an opcode of their own and their number. Before, a pickle begins with the opcode of
# its first object; each pattern is one with enough of what must follow it that running text does not match.
_PROTOCOL = re.compile(rb"\x80[\x02-\x05]")
_PUT = rb"p\d+\n"
_GLOBAL = rb"[ci][A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n(?:" + _PUT + rb"|[q(].|[.)\]}\x85-\x87])"
_LINE = (
    rb"(?:I[-+]?\d+\n|L[-+]?\d+L?\n|F[-+]?(?:[\d.]+(?:e[-+]?\d+)?|inf|nan)\n"
    rb"|(?:S(?:'[^\n]*'|\"[^\n]*\")|V[^\n]*)\n" + _PUT + rb")"
)
_PROTOCOL_0 = re.compile(
    rb"\(*" + _GLOBAL + rb"|\(+[ldt](?:" + _PUT + rb"|\.\Z)|\(+" + _LINE + rb"|" + _LINE + rb"\.\Z|N\.\Z|I\d+\n\.",
    re.DOTALL,
)
_SHORT = rb"(?:K.|M..|J.{4}|G.{8}|U.[^\n]{0,255}?q.|[TX].{2}\x00\x00)"
_PROTOCOL_1 = re.compile(
    rb"\(*[\]})](?:q.|\.\Z)|\([ldt]q.|\(+" + _SHORT + rb"|" + _SHORT + rb"(?:\.\Z|q.)|[TX].{2}\x00\x00", re.DOTALL
)
# Text has none of these; a pickle of protocol 1 has the number of its first object, which is 0.
_BINARY = re.compile(rb"[\x00-\x08]")


def is_pickle_name(name: str) -> bool:
    """Whether files of this name are as a rule pickles (`pytorch_model.bin`, `x.pt`, `x.pkl.gz`)."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    while suffixes and suffixes[-1] in _WRAPPINGS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _NAMES


def looks_pickled(head: bytes) -> bool:
    """Whether bytes that begin so can be a pickle, of any protocol. `head` is 512 bytes or more, or the whole file."""
    return (
        _PROTOCOL.match(head) is not None
        or _PROTOCOL_0.match(head) is not None
        or (
            _PROTOCOL_1.match(head) is not None and (head == b"]." or head == b"}." or _BINARY.search(head) is not None)
        )
        or head.startswith(b"ZF0x")  # joblib before 0.10: zlib behind a length of its own
    )
