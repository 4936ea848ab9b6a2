"""`press gc`, `verify`, `get`, `export`, `import`: the space bytes take, whether they are whole, how they travel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, count, human_bytes, print_json
from pressroom.cli._progress import ProgressLines

if TYPE_CHECKING:
    from pressroom.kernel import Workspace, WorkspaceError
    from pressroom.registry import Archive, Problem, Version
    from pressroom.store import Blob, Swept

_MOST_NAMES = 5


@click.command(epilog="Example: press gc --dry-run")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--all-of-it", is_flag=True, help="Also where no version was ever registered here: every byte goes then.")
@common
def gc(dry_run: bool, all_of_it: bool, as_json: bool) -> None:
    """Give back the space of what nothing refers to: bytes of cut runs and removed versions, folders nobody uses.

    Nobody who reads meanwhile is stopped. A store with bytes beside a database that never had a version is left alone,
    because the database may have been lost.
    """
    from pressroom.deploy import Deployments
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace, workspace.spending_reserve(), ProgressLines(workspace, quiet=as_json):
        registry = Registry(workspace)
        deployed = {wish.digest for wish in Deployments(workspace).list()}
        loose, folders = registry.loose(), registry.leftovers(deployed)
        if loose and not (dry_run or all_of_it or registry.names_ever()):
            raise _perhaps_lost(workspace, loose)
        let_go = sum(blob.size for blob in loose) if dry_run else registry.collect(needed=deployed)
        swept = registry.store.sweep(dry_run=dry_run)
        usage = registry.store.usage()
        versions = registry.list()
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "loose_files": len(loose),
                "loose_bytes": let_go,
                "folders": len(folders),
                "swept": dataclasses.asdict(swept),
                "usage": dataclasses.asdict(usage),
                "versions": len(versions),
            }
        )
        return
    would = "would be " if dry_run else ""
    if loose:
        click.echo(f"{would}let go of: {count(len(loose), 'file')} that no version has, {human_bytes(let_go)}".lstrip())
    if folders:
        click.echo(f"{would}removed: {count(len(folders), 'folder')} laid out for engines that nothing uses")
    click.echo(f"{would}given back: {human_bytes(swept.freed)} of the store")
    for line in _kept(swept, versions):
        click.echo(f"  {line}")
    click.echo(
        f"{count(len(versions), 'version')}, {count(usage.files, 'file')}: {human_bytes(usage.logical)}, "
        f"stored in {human_bytes(usage.stored)}"
    )


@click.command(epilog="Example: press verify smollm2:3")
@click.argument("ref", required=False)
@common
@click.pass_context
def verify(context: click.Context, ref: str | None, as_json: bool) -> None:
    """Read every byte of REF, or of everything held, and hold it against its digest; then the records.

    Ends with 1 where something is damaged or missing, and says which versions have it.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import verify as verify_all

    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        report = verify_all(workspace, ref)
    if as_json:
        print_json(report.as_dict())
    else:
        for kind, words in _lines_of(report.problems):
            click.echo(f"{click.style(kind, fg='red', bold=True)}  {words}")
        for hint in dict.fromkeys(problem.hint for problem in report.problems if problem.hint):
            click.echo(f"  {hint}")
        if any(problem.details for problem in report.problems):
            click.echo("  `press verify --json` says what exactly was found, and where.")
        click.echo(
            f"{count(report.files, 'file')} of {count(report.versions, 'version')} whole, "
            f"{human_bytes(report.bytes)}; {count(len(report.problems), 'problem')}"
        )
        if report.loose_files:
            click.echo(
                f"  {count(report.loose_files, 'file')} of no version ({human_bytes(report.loose_bytes)}): press gc"
            )
    if not report.sound:
        context.exit(1)


@click.command(epilog="Example: press get smollm2:3 ./smollm2")
@click.argument("ref")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--force", is_flag=True, help="Replace files of the same names that have other bytes.")
@common
def get(ref: str, directory: Path, force: bool, as_json: bool) -> None:
    """Write the files of the version REF into DIRECTORY, bit for bit as they were registered.

    Each is checked against its digest, and all of them come or none. What is there already with the same bytes stays;
    what else lies in DIRECTORY is left alone.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import give_files

    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        given = give_files(workspace, ref, directory, force=force)
    version = given.version
    if as_json:
        print_json(
            {
                "ref": f"{version.name}:{version.number}",
                "digest": version.digest,
                "directory": str(given.directory),
                "bytes": version.size,
                "files": [
                    {**dataclasses.asdict(entry), "written": entry.path in given.written} for entry in version.files
                ],
            }
        )
        return
    size = sum(entry.size for entry in version.files if entry.path in given.written)
    kept = f", {count(len(given.kept), 'file')} there already" if given.kept else ""
    click.echo(f"{version.name}:{version.number} in {directory}: {count(len(given.written), 'file')}, ", nl=False)
    click.echo(f"{human_bytes(size)} written and checked{kept}")


@click.command(epilog="Example: press export smollm2:3 /media/usb --with-parents")
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--with-parents", is_flag=True, help="Take along every ancestor that is registered here.")
@common
def export(refs: tuple[str, ...], directory: Path, with_parents: bool, as_json: bool) -> None:
    """Write versions into one file in DIRECTORY, for a machine without a network.

    It holds files, sheets, lineage, tags and descriptions, not aliases, and every byte of it can be verified.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import export_archive

    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        archive = export_archive(workspace, refs, directory, with_parents=with_parents)
    if as_json:
        print_json(_archive(archive))
    else:
        click.echo(f"{archive.path}  {human_bytes(archive.size)}  blake3-{archive.digest[:12]}")
        for version in archive.versions:
            click.echo(f"  {_named(version)}")
        click.echo(f"There: press import {archive.path.name}")


@click.command("import", epilog="Example: press import /media/usb/smollm2-3.pressroom")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Only verify it; register nothing.")
@common
def import_(file: Path, check: bool, as_json: bool) -> None:
    """Register what a file of `press export` holds, once all of it was verified.

    A version keeps its number where that is above every number its name ever had here, else it gets the next one. What
    is here already is not written again.
    """
    from pressroom.kernel import Workspace
    from pressroom.registry import import_archive, verify_archive

    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        if check:
            archive = verify_archive(workspace, file)
        else:
            done = import_archive(workspace, file)
    if check:
        if as_json:
            print_json(_archive(archive))
        else:
            click.echo(f"{file} is whole: {human_bytes(archive.size)}  blake3-{archive.digest[:12]}")
            for version in archive.versions:
                click.echo(f"  {_named(version)}")
        return
    if as_json:
        print_json(
            [
                {
                    "there": f"{one.there.name}:{one.there.number}",
                    "ref": f"{one.here.name}:{one.here.number}",
                    "digest": one.here.digest,
                    "known": one.known,
                }
                for one in done
            ]
        )
        return
    for one in done:
        here, there = f"{one.here.name}:{one.here.number}", f"{one.there.name}:{one.there.number}"
        came = f" (there: {there})" if here != there else ""
        click.echo(f"{_named(one.here)}{came}{'  was here already' if one.known else ''}")


def _perhaps_lost(workspace: Workspace, loose: Sequence[Blob]) -> WorkspaceError:
    from pressroom.kernel import WorkspaceError

    size = sum(blob.size for blob in loose)
    return WorkspaceError(
        f"no version was ever registered in {workspace.dir}, and its store has {count(len(loose), 'file')}, "
        f"{human_bytes(size)}: nothing was let go of",
        hint="If the database was lost, put a backup in its place, or pull the models again: no byte is stored twice. "
        "If these are only left of pulls that were cut: press gc --all-of-it.",
        loose_files=len(loose),
        loose_bytes=size,
    )


def _lines_of(problems: Sequence[Problem]) -> Iterator[tuple[str, str]]:
    """One line for each version that has damaged or missing files, and one for everything else."""
    of_versions: dict[tuple[str, str], list[str]] = {}
    others = []
    for problem in problems:
        if not problem.places:
            others.append((problem.kind, problem.message))
        for ref, path in problem.places:
            words = path if len(problem.tensors) == 0 else f"{path} ({_named_some(problem.tensors, 'tensor')})"
            of_versions.setdefault((problem.kind, ref), []).append(words)
    for (kind, ref), files in of_versions.items():
        more = f" and {len(files) - _MOST_NAMES} more files" if files[_MOST_NAMES:] else ""
        yield kind, f"{ref}  {', '.join(files[:_MOST_NAMES])}{more}"
    yield from others


def _named_some(names: Sequence[str], what: str) -> str:
    return f"{count(len(names), what)}: {', '.join(names[:2])}{', …' if names[2:] else ''}"


def _kept(swept: Swept, versions: Sequence[Version]) -> Iterator[str]:
    """What stays of deleted files, and for whom."""
    users: dict[str, list[str]] = {}
    for version in versions:
        for entry in version.files:
            users.setdefault(entry.blob, []).append(f"{version.name}:{version.number}")
    for kept in swept.kept:
        names = sorted({name for blob in kept.needed_by for name in users.get(blob, [f"{blob[:19]}…"])})
        shown = ", ".join(names[:_MOST_NAMES]) + (
            f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else ""
        )
        of_it = f"{kept.digest[:19]}…" if kept.digest else "a deleted file"
        yield f"{human_bytes(kept.size)} of {of_it} stay: {shown} {'are' if names[1:] else 'is'} stored as a difference"


def _named(version: Version) -> str:
    return f"{version.name}:{version.number}  {version.kind}  {human_bytes(version.size)}  {version.digest[:19]}"


def _archive(archive: Archive) -> dict[str, Any]:
    return {
        "path": str(archive.path),
        "bytes": archive.size,
        "blake3": archive.digest,
        "versions": [
            {"ref": f"{version.name}:{version.number}", "digest": version.digest} for version in archive.versions
        ],
    }
