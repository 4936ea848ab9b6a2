"""`press frontier`: every measured version made from one, bytes against divergence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, human_bytes, print_json, table

if TYPE_CHECKING:
    from pressroom.cli._frontier_svg import Point
    from pressroom.registry.base import Version


@click.command(epilog="Example: press frontier smollm2 --svg frontier.svg")
@click.argument("ref")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file, too.")
@common
def frontier(ref: str, svg: Path | None, as_json: bool) -> None:
    """What was made from REF, and what it cost: bytes against the divergence from REF, with tokens a second.

    A version counts once its sheet has `kl_mean`, which `press compress` and `press measure` put there. Best is one
    than which no other is both smaller and nearer.
    """
    from pressroom.cli._files import write_text
    from pressroom.cli._frontier_svg import frontier_svg
    from pressroom.kernel import NotFoundError, Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        registry = Registry(workspace)
        origin = registry.get(ref)
        made = [version for version in registry.list() if version.parent == origin.digest]
    called = f"{origin.name}:{origin.number}"
    points, unmeasured = points_of(origin, made)
    if not points:
        raise NotFoundError(
            f"nothing that was made from {called} has been measured",
            hint=f"Make something: press compress {called} --to int8"
            + (f"; or measure what there is: press measure {unmeasured[0]}" if unmeasured else ""),
            ref=called,
        )
    if svg is not None:
        write_text(svg, frontier_svg(f"What was made from {called}", points))
    if as_json:
        whole: dict[str, Any] = {"ref": called, "digest": origin.digest, "bytes": origin.size}
        print_json({**whole, "points": [point.as_dict() for point in points], "unmeasured": unmeasured})
        return
    table(
        ["VERSION", ">SIZE", ">KL", ">± 2 SE", ">TOKENS/S", ""],
        [
            [
                point.name,
                human_bytes(round(point.mb * 1e6)),
                f"{point.kl:.5f}",
                "" if point.kl_stderr is None else f"{2 * point.kl_stderr:.5f}",
                "" if point.tokens_per_second is None else f"{point.tokens_per_second:.0f}",
                "best" if point.best else "",
            ]
            for point in points
        ],
    )
    click.secho(f"\n{called} itself has {human_bytes(origin.size)}. KL is in nats a token.", dim=True)
    if unmeasured:
        click.secho(f"Not measured: {', '.join(unmeasured)} (press measure {unmeasured[0]}).", dim=True)
    if svg is not None:
        click.echo(f"drawn in {svg}", err=True)


def points_of(origin: Version, made: list[Version]) -> tuple[list[Point], list[str]]:
    """Those that were measured, smallest first, and the names of the others. Equal files of several names are one."""
    from pressroom.cli._frontier_svg import Point

    found: dict[str, Point] = {}
    unmeasured: list[str] = []
    for version in made:
        name = f"{version.name}:{version.number}"
        kl = _number(version, "kl_mean")
        if kl is None:
            unmeasured.append(name)
        elif version.digest not in found:
            found[version.digest] = Point(
                name=name,
                mb=version.size / 1e6,
                kl=kl,
                kl_stderr=_number(version, "kl_stderr"),
                tokens_per_second=_number(version, "tokens_per_second_1"),
            )
    points = sorted(found.values(), key=lambda point: (point.mb, point.kl))
    nearest = float("inf")
    best = []
    for point in points:
        best.append(point.kl < nearest)
        nearest = min(nearest, point.kl)
    return [dataclasses.replace(point, best=is_best) for point, is_best in zip(points, best, strict=True)], unmeasured


def _number(version: Version, name: str) -> float | None:
    figure = version.figure(name)
    return float(figure.value) if figure is not None and isinstance(figure.value, int | float) else None
