"""`press lineage`, `press diff`: where a version comes from, and what differs between two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, count, human_bytes, print_json, table
from pressroom.cli._progress import ProgressLines

if TYPE_CHECKING:
    from pressroom.kernel import Workspace
    from pressroom.registry import Comparison, TensorChange

_MOST_LINES = 20
_LONGEST = 60


@click.command(epilog="Example: press lineage smollm2:3 --svg family.svg")
@click.argument("ref")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw the family into this file, too.")
@common
def lineage(ref: str, svg: Path | None, as_json: bool) -> None:
    """The family of REF as a tree: who comes from whom, with what each step changed.

    Beside its size stands what removing a version alone would free: little, where others are stored as differences from
    it. A step shows the difference in bytes, the perplexities and the KL divergence to the parent (the figure kl_mean),
    those that the sheets have.
    """
    from pressroom.cli._family import tree_lines
    from pressroom.cli._family_svg import family_svg
    from pressroom.cli._files import write_text
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry, family

    with Workspace.open() as workspace:
        registry = Registry(workspace)
        version = registry.get(ref)
        root = family(registry, version)
        deployed = _deployed(workspace)
    if svg is not None:
        heading = f"The family of {version.name}:{version.number}"
        write_text(svg, family_svg(root, marked=version.digest, deployed=deployed, heading=heading))
    if as_json:
        members = [{**member.as_dict(), "deployed": deployed.get(member.digest, [])} for member in root.walk()]
        print_json({"ref": f"{version.name}:{version.number}", "digest": version.digest, "members": members})
        return
    for line in tree_lines(root, marked=version.digest, deployed=deployed):
        click.echo(line)
    legend = "◀ is what you asked for; 'frees' is what the store would get back if only that version went."
    click.secho(f"\n{legend}", dim=True)
    if svg is not None:
        click.echo(f"drawn in {svg}", err=True)


def _deployed(workspace: Workspace) -> dict[str, list[str]]:
    """Names of the deployments by the digest they serve."""
    from pressroom.deploy import Deployments

    found: dict[str, list[str]] = {}
    for wish in Deployments(workspace).list():
        if wish.running:
            found.setdefault(wish.digest, []).append(wish.name)
    return found


@click.command(epilog="Example: press diff smollm2:1 smollm2:2")
@click.argument("first")
@click.argument("second")
@click.option("--all", "everything", is_flag=True, help="Every tensor and key, not only the first of each kind.")
@common
def diff(first: str, second: str, everything: bool, as_json: bool) -> None:
    """What differs between two versions: tensors and how far, metadata, and the other files.

    CHANGED is the share of elements whose bits differ, L2 the norm of the difference over the norm of the FIRST, MAX
    the largest difference. Blocks of quantised types are compared by their bytes only: they have no L2 and no MAX.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import compare

    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        found = compare(workspace, first, second)
    if as_json:
        print_json(found.as_dict())
    else:
        print_comparison(found, most=None if everything else _MOST_LINES)


def print_comparison(found: Comparison, *, most: int | None) -> None:
    """For people: the most changed tensors, then metadata and files. `most` lines of each; None shows all."""
    one, other = (f"{version.name}:{version.number}" for version in (found.first, found.second))
    if found.first.digest == found.second.digest:
        click.echo(
            f"{one} is {other}: there is nothing to compare."
            if found.first.ref == found.second.ref
            else f"{one} and {other} are the same: they have the same files, bit for bit."
        )
    else:
        for path in found.weights_same:
            click.echo(f"{path}: the same bytes in both")
    if found.tensors or found.tensors_same:
        differ = f"{count(len(found.tensors), 'tensor')} {'differs' if len(found.tensors) == 1 else 'differ'}"
        click.echo(f"{differ}, {found.tensors_same:,} {'is' if found.tensors_same == 1 else 'are'} the same")
    changes = sorted(found.tensors, key=_by_distance)
    if changes:
        table(["TENSOR", "WHAT", "TYPE", "SHAPE", ">CHANGED", ">L2", ">MAX"], [_tensor_row(c) for c in changes[:most]])
        _more(len(changes), most)
        if any(change.distance is not None and change.distance.by_bytes for change in changes):
            click.echo("  Quantised blocks were compared by their bytes: CHANGED is the share of bytes.")
    _print_pairs("Metadata", found.metadata, most)
    for file in found.files:
        sizes = " → ".join("nothing" if size is None else human_bytes(size) for size in file.sizes)
        _print_pairs(f"{file.path}  {file.what}, {sizes}", file.keys or {}, most, always=True)


def _print_pairs(heading: str, pairs: dict[str, tuple[Any, Any]], most: int | None, *, always: bool = False) -> None:
    if not pairs and not always:
        return
    click.secho(heading, bold=True)
    for key, (old, new) in list(pairs.items())[:most]:
        click.echo(f"  {key}: {_short(old)} → {_short(new)}")
    _more(len(pairs), most)


def _more(count: int, most: int | None) -> None:
    if most is not None and count > most:
        click.echo(f"  and {count - most} more (--all shows them)")


def _by_distance(change: TensorChange) -> tuple[int, float, str]:
    apart = change.distance
    if apart is None:
        return 0, 0.0, change.name
    return 1, -(apart.relative_l2 if apart.relative_l2 is not None else apart.share), change.name


def _tensor_row(change: TensorChange) -> list[str]:
    apart = change.distance
    return [
        change.name,
        change.what,
        _arrow(*change.dtypes),
        _arrow(*("×".join(map(str, shape)) if shape is not None else None for shape in change.shapes)),
        f"{100 * apart.share:.3g}%" if apart else "",
        f"{apart.relative_l2:.3g}" if apart and apart.relative_l2 is not None else "",
        f"{apart.max_abs:.3g}" if apart and apart.max_abs is not None else "",
    ]


def _arrow(old: str | None, new: str | None) -> str:
    return (new if old in (None, new) else old if new is None else f"{old} → {new}") or ""


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
