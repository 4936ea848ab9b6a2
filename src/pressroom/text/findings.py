"""Where in a text something was found, and how long texts are looked through in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

# Nothing that is found is longer than this, or looks farther around itself: private keys are the longest.
REACH = 16 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """`text[start:end]` is a `kind`. What stands there is not kept, so that a finding may be logged."""

    kind: str
    start: int
    end: int


def disjoint(found: Iterable[Finding]) -> list[Finding]:
    """The findings by place, none overlapping another: of two that do, the one that begins first, and of those that
    begin together the longest. What the other one covers beyond it is added to it, so that nothing found stays bare."""
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda one: (one.start, -one.end)):
        if kept and finding.start < kept[-1].end:
            last = kept[-1]
            if finding.end > last.end:
                kept[-1] = Finding(last.kind, last.start, finding.end)
        else:
            kept.append(finding)
    return kept


def in_pieces(find: Callable[[str], list[Finding]], text: str, *, size: int = 64 * 1024) -> Iterator[list[Finding]]:
    """The same findings as `find(text)`, piece by piece of about `size` characters, so that whoever has other things to
    do can do them in between, or stop at the first finding. Each piece is looked at with what stands around it."""
    for start in range(0, max(len(text), 1), size):
        first = max(0, start - REACH)
        around = find(text[first : start + size + REACH])
        yield [
            Finding(one.kind, one.start + first, one.end + first)
            for one in around
            if start <= one.start + first < start + size
        ]
