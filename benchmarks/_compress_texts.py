"""The texts of `compress.py`: novels and a dictionary in the public domain, out of two Debian packages.

    evaluation    Persuasion, Northanger Abbey, the last 30 % of the Jargon File
    calibration   Pride and Prejudice, the Jargon File from 50 to 70 %
    training      Emma, Mansfield Park, the first half of the Jargon File

Nothing is in two of them. Each takes its sources in turn, a few pages of one and then of the next, so that the first
thousand tokens are as mixed as all. Packages are fetched by name with `apt-get download`; what is in them is
checked by its hash, so that any release of the packages with the same words will do.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("r-cran-janeaustenr", "jargon-text")
_NOVELS = "usr/lib/R/site-library/janeaustenr/data/Rdata"
_JARGON = "usr/share/doc/jargon-text/jargon.txt.gz"
_SHA256 = {
    "emma": "dd08b340a56ad4a0a00718d5682528a5a5886ae0aef91c9e0fa528074fa64b75",
    "mansfieldpark": "e0e9ef3863ea77f51f6070062ee0dd50ad9b933223880617629e4e4963ea40ff",
    "northangerabbey": "8618a5acf5be50cc6e9b7680c7469fb6012649ab08c709dfc63c6367989fd31d",
    "persuasion": "726513a6c18bb678427bcbcf7c72d0d20816a67c25b0471b26ddcabf3ebac140",
    "prideprejudice": "2e44edaa4946d64ad541c68e0224f5d672f43bf3ce2a8a0b0637ad5e02fc6eb3",
    "jargon": "40dfb4b98191a670a09a183d5798d50f243d23fdbd1495dcc0aca2ce5895ba97",
}
# In characters: eight windows of 512 tokens, about.
_PAGES = 16_384
# Pages of each source that go into a text: 60 thousand tokens to score, 200 thousand to calibrate on.
_MOST = {"evaluation": 8, "calibration": 20, "training": 12}
_PARTS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "evaluation": (("persuasion", 0, 1), ("northangerabbey", 0, 1), ("jargon", 0.7, 1)),
    "calibration": (("prideprejudice", 0, 1), ("jargon", 0.5, 0.7)),
    "training": (("emma", 0, 1), ("mansfieldpark", 0, 1), ("jargon", 0, 0.5)),
}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Where the three texts are."""

    evaluation: Path
    calibration: Path
    training: Path


def texts(cache: Path) -> Texts:
    """The texts as files in the cache, fetched and made where they are not there."""
    folder = cache / "texts"
    found = {name: folder / f"{name}.txt" for name in _PARTS}
    if not all(path.exists() for path in found.values()):
        folder.mkdir(parents=True, exist_ok=True)
        sources = _sources(_files(cache / "packages"))
        for name, text in sources.items():
            digest = hashlib.sha256(text.encode()).hexdigest()
            if name in _SHA256 and digest != _SHA256[name]:
                raise SystemExit(f"{name} has other words than it had: sha256 {digest}, and {_SHA256[name]} is known")
        for name, path in found.items():
            part = path.with_suffix(".part")
            part.write_text(mixed(sources, name), encoding="utf-8")
            part.replace(path)
    return Texts(**found)


def mixed(sources: dict[str, str], name: str) -> str:
    """A text from its sources in turn, the pages of each spread over all of it."""
    parts = []
    for source, begin, end in _PARTS[name]:
        text = sources[source]
        parts.append(text[int(begin * len(text)) : int(end * len(text))])
    rounds = min(_MOST[name], *(len(part) // _PAGES for part in parts))
    made = []
    for at in range(rounds):
        for part in parts:
            start = (len(part) - _PAGES) * at // max(1, rounds - 1)
            made.append(part[start : start + _PAGES])
    return "\n\n".join(made)


def _files(folder: Path) -> dict[str, bytes]:
    """The files of the packages that hold texts, by their path."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, bytes] = {}
    for package in PACKAGES:
        if not any(folder.glob(f"{package}_*.deb")):
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                done = subprocess.run(
                    ["apt-get", "download", "--quiet", package], cwd=fresh, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise SystemExit(f"the package {package} cannot be fetched: {done.stderr.strip()[-300:]}")
                for path in Path(fresh).glob("*.deb"):
                    path.rename(folder / path.name)
        for path in folder.glob(f"{package}_*.deb"):
            with tarfile.open(fileobj=io.BytesIO(_member(path.read_bytes(), b"data.tar"))) as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if name.startswith(_NOVELS) or name == _JARGON:
                        opened = archive.extractfile(member)
                        assert opened is not None
                        found[name] = opened.read()
    return found


def _member(package: bytes, begins: bytes) -> bytes:
    """A file of an `ar` archive, which a Debian package is."""
    at = 8
    while at < len(package):
        head = package[at : at + 60]
        size = int(head[48:58])
        if head.startswith(begins):
            return package[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise SystemExit(f"there is no {begins.decode()} in the package")


def _sources(files: dict[str, bytes]) -> dict[str, str]:
    novels = dict(lazy_data(files[f"{_NOVELS}.rdx"], files[f"{_NOVELS}.rdb"]))
    made = {name: "\n".join(lines) for name, lines in novels.items()}
    return made | {"jargon": gzip.decompress(files[_JARGON]).decode()}


def lazy_data(index: bytes, data: bytes) -> Iterator[tuple[str, Any]]:
    """Name and value of what an R package keeps in its two files of lazily loaded data."""
    places = unserialised(zlib.decompress(index, 47))["variables"]
    for name, (start, length) in places.items():
        yield name, unserialised(zlib.decompress(data[start + 4 : start + length]))  # behind the length unpacked


def unserialised(data: bytes) -> Any:
    """What R wrote with `serialize`: vectors of text and whole numbers, and lists of these, named ones as a dict."""
    at = 14 + 4 + struct.unpack_from(">i", data, 14)[0]  # behind the versions, and the name of the encoding

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from(">i", data, at - 4)[0])

    def item() -> Any:
        nonlocal at
        flags = number()
        kind = flags & 255
        if kind == 254:  # nothing
            return None
        if kind == 255:  # a symbol that was there before, which is always "names" here
            return "names"
        if kind == 1:
            return item()
        if kind == 9:
            length = max(0, number())
            at += length
            return data[at - length : at].decode()
        if kind == 2:  # of a chain of attributes: the tag, the value, the rest
            return {item(): item()} | (item() or {})
        if kind not in (10, 13, 16, 19):
            raise SystemExit(f"R's type {kind} is not read here")
        found = [number() if kind in (10, 13) else item() for _ in range(number())]
        attributes = item() if flags & 0x200 else {}
        return dict(zip(attributes["names"], found, strict=True)) if "names" in attributes else found

    return item()
