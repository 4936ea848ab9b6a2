"""`press runs`: what was tried, side by side, and which versions came of it."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, count, human_ago, human_bytes, print_json, table

if TYPE_CHECKING:
    from pressroom.track import Comparison, RunRecord

# Metrics shown in the list; the others are counted.
_SHOWN = 3
_STATUSES = ("running", "finished", "failed", "killed", "lost")
_COLOURS = {"running": "cyan", "failed": "red", "killed": "yellow", "lost": "yellow"}


@click.group(
    invoke_without_command=True,
    epilog="Example: press runs --status failed; press runs compare tuned-1 tuned-2",
)
@click.option("--experiment", metavar="NAME", help="Only the runs of this experiment.")
@click.option("--status", type=click.Choice(_STATUSES), help="Only runs that are so.")
@click.option("-n", "--most", type=click.IntRange(1), default=30, show_default=True, help="How many, newest first.")
@common
@click.pass_context
def runs(context: click.Context, experiment: str | None, status: str | None, most: int, as_json: bool) -> None:
    """Tracked runs: what was tried and what came of it.

    A run that is `lost` was never finished, and the process that ran it on this machine is gone.
    """
    if context.invoked_subcommand is not None:
        return
    from pressroom.kernel import Workspace
    from pressroom.track import open_tracker

    with Workspace.open() as workspace, open_tracker(workspace) as tracker:
        found = tracker.list(experiment=experiment, status=status, most=most)
    if as_json:
        print_json([run.as_dict() for run in found])
        return
    if not found:
        click.echo("No runs yet. Track one with pressroom.track.open_tracker, or with MLflow: see docs/tracking.md.")
        return
    rows = [
        [
            run.id[:8],
            run.name,
            run.status,
            human_ago(run.started),
            _duration(run.seconds),
            _metrics(run.metrics),
            ", ".join(_plain(version) for version in run.versions),
        ]
        for run in found
    ]
    table(["ID", "NAME", "STATUS", "STARTED", ">DURATION", "METRICS", "VERSION"], rows)


@runs.command(epilog="Example: press runs show tuned-1")
@click.argument("run_id", metavar="RUN")
@common
def show(run_id: str, as_json: bool) -> None:
    """All that is on record of a run. RUN is its id, the beginning of that, or its name."""
    from pressroom.kernel import Workspace
    from pressroom.track import open_tracker

    with Workspace.open() as workspace, open_tracker(workspace) as tracker:
        run = tracker.get(run_id)
        artifacts = tracker.artifacts(run.id)
    if as_json:
        print_json(run.as_dict() | {"artifacts": [dataclasses.asdict(artifact) for artifact in artifacts]})
        return
    click.secho(run.name, bold=True, nl=False)
    click.echo("  ", nl=False)
    click.secho(run.status, fg=_COLOURS.get(run.status, "green"))
    where = f"{run.host}, process {run.pid}" if run.host else ""
    for label, value in (
        ("id", run.id),
        ("experiment", run.experiment),
        ("started", f"{human_ago(run.started)} by {run.user or 'somebody'}"),
        ("duration", _duration(run.seconds)),
        ("where", where),
        ("from", run.started_from),
        ("made", ", ".join(run.versions)),
    ):
        if value:
            click.echo(f"  {label:<10} {value}")
    for heading, pairs in (("PARAM", run.params), ("TAG", run.tags)):
        if pairs:
            click.echo("")
            table([heading, "VALUE"], [[name, _line(value)] for name, value in pairs.items()])
    if run.metrics:
        click.echo("")
        table(["METRIC", ">LAST"], [[name, _number(value)] for name, value in run.metrics.items()])
    if run.datasets:
        click.echo("")
        rows = [
            [d.name, d.role, "" if d.rows is None else f"{d.rows:,}", d.digest[:26], d.source] for d in run.datasets
        ]
        table(["DATA", "FOR", ">ROWS", "DIGEST", "SOURCE"], rows)
    if artifacts:
        click.echo("")
        table(["ARTIFACT", ">SIZE"], [[a.path, "" if a.size is None else human_bytes(a.size)] for a in artifacts])


@runs.command(epilog="Example: press runs compare tuned-1 tuned-2 --metric loss --svg loss.svg")
@click.argument("run_ids", metavar="RUN RUN…", nargs=-1, required=True)
@click.option("--metric", metavar="NAME", help="The metric that is drawn; the first they share otherwise.")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw a metric over the steps into a file."
)
@common
def compare(run_ids: tuple[str, ...], metric: str | None, svg: Path | None, as_json: bool) -> None:
    """Runs side by side: the params that differ, and the metrics with the difference to the first run."""
    from pressroom.kernel import Workspace
    from pressroom.track import open_tracker

    if len(run_ids) < 2 and svg is None:
        raise click.UsageError("Name two runs or more.")
    if metric is not None and svg is None:
        raise click.UsageError("--metric says what --svg FILE draws: give both.")
    with Workspace.open() as workspace, open_tracker(workspace) as tracker:
        found = tracker.compare(run_ids)
        if svg is not None:
            metric = metric or _drawn(found)
            lines = {
                f"{run.name} ({run.id[:8]})": tracker.history(run.id, metric)
                for run in found.runs
                if metric in run.metrics or len(found.runs) == 1
            }
    if svg is not None:
        from pressroom.cli._files import write_text
        from pressroom.cli._runs_svg import metric_svg

        assert metric is not None
        if not lines:
            raise click.UsageError(f"None of these runs has a metric {metric!r}: {', '.join(found.metrics) or 'none'}.")
        write_text(svg, metric_svg(metric, lines))
    if as_json:
        print_json(_comparison(found) | ({"svg": str(svg), "metric": metric} if svg is not None else {}))
        return
    _print_comparison(found)
    if svg is not None:
        click.secho(f"\n{metric} over steps: {svg}", dim=True)


@runs.command(epilog="Example: press runs link tuned-1 smollm2-tuned:2")
@click.argument("run_id", metavar="RUN")
@click.argument("ref")
@common
def link(run_id: str, ref: str, as_json: bool) -> None:
    """Keep with RUN that it made the version REF, and with the version that the run made it."""
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry
    from pressroom.track import open_tracker

    with Workspace.open() as workspace, open_tracker(workspace) as tracker:
        registry = Registry(workspace)
        version = registry.get(ref)
        run = tracker.get(run_id)
        # Cut between the two, the same command again completes it.
        tracker.link(run.id, str(version.ref))
        registry.annotate(version.ref, run=run.id)
    if as_json:
        print_json({"run": run.id, "version": str(version.ref)})
    else:
        click.echo(f"{run.name} ({run.id[:8]}) made {version.name}:{version.number}")


@runs.command(epilog="Example: press runs ui --port 5001")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port on 127.0.0.1.")
@common
def ui(port: int, as_json: bool) -> None:
    """MLflow's own pages on the same runs and versions, until Ctrl-C. Only this machine can open them."""
    from pressroom.gateway.binding import bind
    from pressroom.kernel import PortInUseError, SettingsError, Workspace
    from pressroom.track import TrackError, open_tracker

    with Workspace.open() as workspace, open_tracker(workspace) as tracker:
        served = getattr(tracker, "server_arguments", None)
        if served is None:
            raise SettingsError(
                f"tracking = {workspace.settings.tracking!r} is not MLflow's: it has no pages of its own"
            )
        command, environment = served(host="127.0.0.1", port=port)
        url = f"http://127.0.0.1:{port}"
        if not command:
            raise TrackError(
                f"the runs are on the server {workspace.settings.tracking}",
                hint="Open that address: its pages show them.",
            )
    try:
        bind("127.0.0.1", port).close()
    except PortInUseError as error:
        raise PortInUseError(
            f"port {port} on 127.0.0.1 is taken", hint="Choose another one with --port.", port=port
        ) from error
    if as_json:
        print_json({"url": url, "pid": os.getpid()})
    else:
        click.echo(f"{url}  (a few seconds to start; Ctrl-C ends it)")
    sys.stdout.flush()
    # In the place of this process: signals reach the server, and nothing is left behind when it ends.
    os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606  arguments as a list, no shell


def _drawn(found: Comparison) -> str:
    """The metric that most runs have, of those the first."""
    if not found.metrics:
        raise click.UsageError("These runs have no metrics: there is nothing to draw.")
    return max(found.metrics, key=lambda name: sum(value is not None for value in found.metrics[name]))


def _comparison(found: Comparison) -> dict[str, Any]:
    from pressroom.track.base import json_number

    return {
        "runs": [run.as_dict() for run in found.runs],
        "params": {name: list(values) for name, values in found.differing.items()},
        "same_params": found.same,
        "metrics": {name: [json_number(value) for value in values] for name, values in found.metrics.items()},
        "differences": {name: list(values) for name, values in found.differences.items()},
    }


def _print_comparison(found: Comparison) -> None:
    names = [f"{run.name} ({run.id[:8]})" for run in found.runs]
    table(["RUN", *names], _facts(found.runs))
    if found.differing:
        click.echo("")
        rows = [
            [name, *("" if v is None else _line(v, 40) for v in values)] for name, values in found.differing.items()
        ]
        table(["PARAM", *names], rows)
    if found.same:
        are = "is" if len(found.same) == 1 else "are"
        click.secho(f"\n{count(len(found.same), 'param')} {are} the same: {', '.join(found.same)}", dim=True)
    if found.metrics:
        click.echo("")
        table(["METRIC", *(f">{name}" for name in names)], [_metric_row(found, name) for name in found.metrics])


def _facts(found: tuple[RunRecord, ...]) -> list[list[str]]:
    rows = [["status", *(run.status for run in found)], ["duration", *(_duration(run.seconds) for run in found)]]
    for label, values in (
        ("from", [_plain(run.started_from) for run in found]),
        ("made", [", ".join(map(_plain, run.versions)) for run in found]),
    ):
        if any(values):
            rows.append([label, *values])
    return rows


def _metric_row(found: Comparison, name: str) -> list[str]:
    cells = []
    for number, (value, difference) in enumerate(zip(found.metrics[name], found.differences[name], strict=True)):
        apart = f" ({difference:+.4g})" if number and difference is not None else ""
        cells.append("" if value is None else _number(value) + apart)
    return [name, *cells]


def _metrics(metrics: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {_number(value)}" for name, value in [*metrics.items()][:_SHOWN])
    return shown + (f" and {len(metrics) - _SHOWN} more" if len(metrics) > _SHOWN else "")


def _number(value: float) -> str:
    return f"{value:.6g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _line(text: str, longest: int = 100) -> str:
    """A text on one line of the terminal."""
    plain = "".join(letter if letter.isprintable() else "·" for letter in text)
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def _plain(ref: str) -> str:
    return ref.partition("@")[0]
