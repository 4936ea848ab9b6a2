"""What a file is, from its first bytes."""

from __future__ import annotations

from pathlib import Path

from pressroom.store._opening import open_regular, unreadable
from pressroom.store.formats import _archives, gguf
from pressroom.store.formats._pickle import is_pickle_name, looks_pickled

# A length that no header has, but that a header which lies may claim: it is still called safetensors, and refused so.
_MOST_CLAIMED = 1 << 40
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")
_HDF5 = b"\x89HDF\r\n\x1a\n"
# Text has no control characters but these: bell, backspace, tab, line feed, vertical tab, form feed, return, escape.
_TEXT_CONTROLS = frozenset(b"\x07\x08\t\n\x0b\x0c\r\x1b")


def sniff(path: Path, name: str | None = None) -> str:
    """What the file is: `gguf`, `safetensors`, `pickle`, `npy`, `hdf5`, `ggml` (before GGUF), `zip`, `tar`, a
    compression (`gzip`, `bzip2`, `xz`, `lzma`, `zlib`, `lz4`, `zstd`), `json`, `text`, `empty` or `unknown`.

    The content decides. `name` is the name the file had: one that pickles have makes it a `pickle`, unless it is GGUF
    or safetensors. An archive or a compressed file with a pickle inside is a `pickle`, too.

    Raises:
        NotFoundError, StoreError: the file is not there or cannot be read.
    """
    called = path.name if name is None else name
    kind = _content(path)
    return "pickle" if is_pickle_name(called) and kind not in ("gguf", "safetensors") else kind


def _content(path: Path) -> str:
    try:
        with open_regular(path) as file:
            head = file.read(_archives.HEAD)
        return _told(path, head)
    except OSError as error:
        raise unreadable(path, error) from error


def _told(path: Path, head: bytes) -> str:
    plain = _uncompressed(head)
    if plain is not None:
        return plain
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return "pickle" if _archives.zip_holds_pickle(path) else "zip"
    if _archives.is_tar(head):
        return "pickle" if _archives.tar_holds_pickle(path) else "tar"
    compression = _archives.compression(head)
    if compression is not None:
        inside = _archives.inflated(compression, head)
        # One compression inside another is not followed: it would not be weights either.
        return (
            "pickle" if _uncompressed(inside) == "pickle" or _archives.tar_begins_with_pickle(inside) else compression
        )
    return _written(head)


def _uncompressed(head: bytes) -> str | None:
    if not head:
        return "empty"
    if head.startswith(gguf.MAGIC):
        return "gguf"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MOST_CLAIMED:
        return "safetensors"
    if head.startswith(b"\x93NUMPY"):
        return "pickle" if _archives.numpy_objects(head) else "npy"
    if looks_pickled(head):
        return "pickle"
    if head.startswith(_HDF5):
        return "hdf5"
    return "ggml" if head[:4] in _OLD_GGML else None


def _written(head: bytes) -> str:
    """Words or numbers: JSON, other text, or neither. A character cut by the end of `head` does no harm."""
    if any(byte < 32 and byte not in _TEXT_CONTROLS for byte in head):
        return "unknown"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return "unknown"
    return "json" if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") else "text"
