"""How a family is said: the words on a member and on the step that led to it, and the tree of them in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from pressroom.cli._output import human_bytes

if TYPE_CHECKING:
    from pressroom.registry import Member, Step


def named(member: Member) -> str:
    """Its references; of a parent that is not here the beginning of its digest."""
    return " = ".join(member.refs) or f"{member.digest[:19]}…"


def described(member: Member) -> str:
    """Kind, size and what the store would get back if only it went."""
    if not member.versions:
        return "not registered here"
    version = member.versions[0]
    if member.frees is None:
        return f"{version.kind}, {human_bytes(version.size)}, bytes missing"
    share = f" ({100 * member.frees / version.size:.1f}%)" if version.size else ""
    return f"{version.kind}, {human_bytes(version.size)}, frees {human_bytes(member.frees)}{share}"


def step_parts(step: Step | None, *, narrow: bool = False) -> list[str]:
    """What changed from its parent: bytes, perplexity and KL, those that are known; `narrow` has no room for more."""
    if step is None:
        return []
    parts = []
    if step.bytes is not None:
        parts.append(f"{'+' if step.bytes > 0 else '−' if step.bytes else '±'}{human_bytes(abs(step.bytes))}")
    if step.perplexity is not None:
        percent = step.perplexity_percent
        change = "" if percent is None else f" ({percent:+.1f}%)"
        before, after = step.perplexity
        said = f"{after - before:+.3g}" if narrow else f"{before:.4g} → {after:.4g}"
        parts.append(f"perplexity {said}{change}".replace("-", "−"))
    if step.kl is not None:
        parts.append(f"KL {step.kl:.3g}")
    return parts


def roles(member: Member, deployed: Mapping[str, list[str]]) -> list[str]:
    """The aliases that point to it, and the deployments that serve it."""
    aliases = [alias.partition(":")[2] if len(member.versions) == 1 else alias for alias in member.aliases]
    return [*aliases, *(f"deployed as {name}" for name in deployed.get(member.digest, ()))]


def tree_lines(root: Member, *, marked: str, deployed: Mapping[str, list[str]]) -> Iterator[str]:
    """The family as lines for a terminal; the member with the digest `marked` stands out."""
    waiting: list[tuple[Member, str, str]] = [(root, "", "")]
    while waiting:
        member, first, others = waiting.pop()
        is_it = member.digest == marked
        said = roles(member, deployed)
        yield (
            first
            + click.style(named(member), bold=is_it, fg="green" if is_it else None)
            + f"  {described(member)}"
            + (click.style(f"  [{', '.join(said)}]", fg="cyan") if said else "")
            + (click.style("  ◀", fg="green", bold=True) if is_it else "")
        )
        parts = step_parts(member.step)
        if parts:
            below = others + ("│   " if member.children else "    ")
            yield below + click.style(" · ".join(parts), dim=True)
        last = len(member.children) - 1
        for place in range(last, -1, -1):
            branch, stem = ("└── ", "    ") if place == last else ("├── ", "│   ")
            waiting.append((member.children[place], others + branch, others + stem))
