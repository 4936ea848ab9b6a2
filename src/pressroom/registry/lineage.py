"""The family of a version: who comes from whom, what each step changed, and what the store would get back without it.

Equal files are one member, whatever names and numbers they have. A parent that is not registered here is a member
without a version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pressroom.kernel import NotFoundError, StoreError
from pressroom.registry.base import Version
from pressroom.registry.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What changed from a parent to its child, where both sheets say it: None where one does not.

    `bytes` is the difference in size; `perplexity` is (parent's, child's); `kl` is the child's KL divergence to its
    parent (its figure `kl_mean`).
    """

    bytes: int | None = None
    perplexity: tuple[float, float] | None = None
    kl: float | None = None

    @property
    def perplexity_percent(self) -> float | None:
        if self.perplexity is None or not self.perplexity[0]:
            return None
        return 100 * (self.perplexity[1] / self.perplexity[0] - 1)

    def as_dict(self) -> dict[str, Any]:
        before, after = self.perplexity or (None, None)
        return {
            "bytes": self.bytes,
            "perplexity": {"from": before, "to": after, "percent": self.perplexity_percent}
            if self.perplexity
            else None,
            "kl_mean": self.kl,
        }


@dataclass(kw_only=True, slots=True)
class Member:
    """One digest of the family: its versions (several where equal files have several names), step and children.

    `frees` is how many bytes the store would get back if only this member went; None where bytes are missing.
    """

    digest: str
    versions: tuple[Version, ...] = ()
    frees: int | None = None
    step: Step | None = None
    children: list[Member] = field(default_factory=list)

    @property
    def refs(self) -> list[str]:
        return [f"{version.name}:{version.number}" for version in self.versions]

    @property
    def aliases(self) -> list[str]:
        return [f"{version.name}:{alias}" for version in self.versions for alias in version.aliases]

    def walk(self) -> Iterator[Member]:
        """This member and all below it, each parent before its children and each branch to its end."""
        waiting = [self]
        while waiting:
            member = waiting.pop()
            yield member
            waiting.extend(reversed(member.children))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the digests of the children."""
        one = self.versions[0] if self.versions else None
        step = self.step
        return {
            "digest": self.digest,
            "refs": self.refs,
            "kind": one.kind if one else None,
            "bytes": one.size if one else None,
            "frees_bytes": self.frees,
            "aliases": self.aliases,
            "step": None if step is None else step.as_dict(),
            "children": [child.digest for child in self.children],
        }


def family(registry: Registry, version: Version) -> Member:
    """The whole family of a version, from its oldest known ancestor down."""
    by_digest: dict[str, list[Version]] = {}
    for each in registry.list():
        by_digest.setdefault(each.digest, []).append(each)
    for versions in by_digest.values():
        # Of equal files, who names a parent says more than who does not, then what was asked for, then the first.
        versions.sort(key=lambda one: (one.parent is None, bool(one.parent) and one.ref != version.ref, one.created))
    parents = {digest: _parent(versions) for digest, versions in by_digest.items()}
    children: dict[str, list[str]] = {}
    for digest, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, []).append(digest)
    top, seen = version.digest, {version.digest}
    while (above := parents.get(top)) is not None and above not in seen:
        top = above
        seen.add(above)
    return _member(registry, top, by_digest, children)


def _member(
    registry: Registry, top: str, by_digest: dict[str, list[Version]], children: dict[str, list[str]]
) -> Member:
    """Built without recursion: a chain of checkpoints may be longer than Python's stack."""
    root = Member(digest=top, versions=tuple(by_digest.get(top, ())), frees=_frees(registry, by_digest.get(top, [])))
    waiting, seen = [root], {top}
    while waiting:
        parent = waiting.pop()
        below = [digest for digest in children.get(parent.digest, ()) if digest not in seen]  # a circle ends here
        for digest in sorted(below, key=lambda each: (by_digest[each][0].created, by_digest[each][0].number)):
            seen.add(digest)
            versions = tuple(by_digest[digest])
            child = Member(
                digest=digest,
                versions=versions,
                frees=_frees(registry, versions),
                step=_step(parent.versions, versions),
            )
            parent.children.append(child)
            waiting.append(child)
    return root


def _parent(versions: Sequence[Version]) -> str | None:
    """The parent that equal files name; of several the one named first."""
    return next((version.parent for version in versions if version.parent not in (None, version.digest)), None)


def _frees(registry: Registry, versions: Sequence[Version]) -> int | None:
    if not versions:
        return None
    try:
        return sum(registry.store.cost(blob) for blob in sorted({entry.blob for entry in versions[0].files}))
    except (StoreError, NotFoundError):
        return None


def _step(parents: Sequence[Version], children: Sequence[Version]) -> Step:
    if not parents:
        return Step(kl=_number(children, "kl_mean"))
    before, after = _number(parents, "perplexity"), _number(children, "perplexity")
    return Step(
        bytes=children[0].size - parents[0].size,
        perplexity=(before, after) if before is not None and after is not None else None,
        kl=_number(children, "kl_mean"),
    )


def _number(versions: Sequence[Version], name: str) -> float | None:
    for version in versions:
        figure = version.figure(name)
        if figure is not None and not isinstance(figure.value, str):
            return float(figure.value)
    return None
