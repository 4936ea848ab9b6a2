"""`press batch`: a file of requests in, a file of answers out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, count, human_count, print_json
from pressroom.cli._progress import ProgressLines, human_seconds
from pressroom.cli._signals import until_stopped
from pressroom.cli._types import Number
from pressroom.cli.talk import gateway_url

if TYPE_CHECKING:
    from pressroom.gateway.batches import Summary

_REASONS_SHOWN = 3


@click.command(epilog="Example: press batch prompts.jsonl --deployment smollm2 --max-tokens 200")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--deployment", required=True, metavar="NAME", help="The deployment that answers.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the answers; FILE.out.jsonl otherwise.")
@click.option("--concurrency", type=click.IntRange(1, 1024), help="Requests at once; batch.concurrency otherwise.")
@click.option(
    "--endpoint",
    type=click.Choice(["chat", "completions", "embeddings"]),
    help="What lines without a url ask; chat otherwise, and embeddings for lines with an input.",
)
@click.option("--system", help="System message before the prompts of chat that are not messages.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens an answer may have, where a line says nothing.")
@click.option("--temperature", type=Number(0, 2), help="Where a line says nothing.")
@click.option("--seed", type=int, help="Where a line says nothing.")
@click.option("--retry-failed", is_flag=True, help="Try those again that failed before.")
@click.option("--redo-changed", is_flag=True, help="Answer those again whose request has changed since.")
@common
def batch(
    file: Path,
    deployment: str,
    out: Path | None,
    concurrency: int | None,
    endpoint: str | None,
    system: str | None,
    retry_failed: bool,
    redo_changed: bool,
    as_json: bool,
    **defaults: float | None,
) -> None:
    """Answer every line of FILE (- for standard input) and append the answers to a file, in the order they come.

    A line is one of OpenAI's batch lines, or an object with "prompt", "messages" or "input" and, if wanted, an "id", or
    a JSON string. Run again, it goes on where it was. Ctrl-C finishes what runs and keeps all. Exits with 1 when some
    failed.
    """
    from pressroom.cli._client import api_key
    from pressroom.gateway.batches import FileJob, Options
    from pressroom.kernel import Workspace

    piped = str(file) == "-"
    if piped and out is None:
        raise click.UsageError("standard input has no name: say where the answers go with --out FILE")
    if not piped and not file.exists():
        raise click.BadParameter(f"there is no file {str(file)!r}", param_hint="FILE")
    if not piped and file.is_dir():
        raise click.BadParameter(f"{str(file)!r} is a directory", param_hint="FILE")
    url = gateway_url(deployment)
    with Workspace.open() as workspace, until_stopped() as stopped, ProgressLines(workspace, quiet=as_json):

        def began() -> None:
            stopped.serving = True

        options = Options(
            url=url,
            deployment=deployment,
            key=api_key(),
            endpoint=endpoint,
            system=system,
            defaults={name: value for name, value in defaults.items() if value is not None},
            concurrency=concurrency,
            retry_failed=retry_failed,
            redo_changed=redo_changed,
        )
        job = FileJob(
            sys.stdin.buffer if piped else file,
            out or file.with_name(f"{file.name}.out.jsonl"),
            options,
            workspace,
            stopped=stopped.is_set,
            began=began,
        )
        summary = job.run()
    if as_json:
        print_json(_record(summary))
    else:
        _show(summary, retry_failed=retry_failed)
    if summary.left:
        click.get_current_context().exit(130)
    if summary.failed:
        click.get_current_context().exit(1)


def _record(summary: Summary) -> dict[str, Any]:
    counts = summary.counts
    return {
        "out": str(summary.out),
        "total": summary.total,
        "before": summary.before,
        "completed": counts.completed,
        "failed_now": counts.failed,
        "failed": summary.failed,
        "left": summary.left,
        "usage": {
            "prompt_tokens": counts.input_tokens,
            "cached_tokens": counts.cached_tokens,
            "completion_tokens": counts.output_tokens,
        },
        "tokens_per_second": round(summary.tokens_per_second, 2),
        "seconds": round(summary.seconds, 3),
        "reasons": [{"message": message, "count": number} for message, number in summary.reasons],
    }


def _show(summary: Summary, *, retry_failed: bool) -> None:
    counts = summary.counts
    done = summary.total - summary.left - summary.failed
    text = f"{summary.out}: {done:,} of {count(summary.total, 'request')} answered"
    if summary.failed:
        text += f", {summary.failed:,} failed"
    if summary.before:
        text += f", {summary.before:,} of them before"
    click.echo(text)
    if counts.done:
        took = f"{summary.seconds:.1f} s" if summary.seconds < 10 else human_seconds(summary.seconds)
        click.echo(
            f"  {human_count(counts.input_tokens)} tokens read, {human_count(counts.output_tokens)} written, "
            f"{summary.tokens_per_second:.1f} tokens/s, in {took}"
        )
    if summary.left:
        click.echo(f"  {count(summary.left, 'request')} left: the same command goes on", err=True)
    if summary.failed:
        click.echo(click.style(f"  {summary.failed:,} failed", fg="red"), err=True)
        for message, number in summary.reasons[:_REASONS_SHOWN]:
            click.echo(f"    {number:,} × {message}", err=True)
        if not retry_failed:
            click.echo("  --retry-failed tries them again", err=True)
