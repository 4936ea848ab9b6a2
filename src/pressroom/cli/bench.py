"""`press bench`: load on a deployment, the usual figures, and a drawing of them."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, print_json, table
from pressroom.cli._types import MOST, Number

if TYPE_CHECKING:
    from pressroom.gateway.bench import Bench, BenchSettings, Round, Slo, Spread
    from pressroom.kernel import Workspace

_MOST_CLIENTS = 10_000
# Above this share of a core the load generator may have been what was measured.
_BUSY = 0.9


def _clients(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    parts = value.split(",")
    if not all(re.fullmatch(r"\s*\d{1,6}\s*", part) and 0 < int(part) <= _MOST_CLIENTS for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of numbers from 1 to {_MOST_CLIENTS}, as 1,4,16,64")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _slo(ctx: click.Context, param: click.Parameter, value: str | None) -> Slo | None:
    from pressroom.gateway.bench import Slo

    if value is None:
        return None
    bounds: dict[str, float] = {}
    for part in value.split(","):
        bound = re.fullmatch(r"\s*(ttft|tpot|e2e)\s*=\s*(\d{1,9}(?:\.\d{1,6})?)\s*(?:ms)?\s*", part)
        if bound is None:
            raise click.BadParameter(f"{part!r} is not ttft=, tpot= or e2e= with milliseconds, as ttft=500,tpot=50")
        bounds[bound[1]] = float(bound[2])
    return Slo(**bounds)


@click.command(epilog="Example: press bench smollm2 --clients 1,4,16,64 --seconds 30 --svg")
@click.argument("name")
@click.option(
    "--clients",
    callback=_clients,
    default="1,4,16,64",
    show_default=True,
    metavar="N,N,…",
    help="How many ask at once; a round for each number.",
)
@click.option("--seconds", type=Number(0.1, 86_400), help="How long a round takes. [default: 10]")
@click.option("--requests", type=click.IntRange(1), help="How many requests a round has, instead of --seconds.")
@click.option(
    "--prompt-tokens", type=click.IntRange(1, 1_000_000), default=128, show_default=True, help="Tokens asked."
)
@click.option("--tokens", type=click.IntRange(1, 1_000_000), default=64, show_default=True, help="Of an answer.")
@click.option("--endpoint", type=click.Choice(["chat", "completions"]), default="chat", show_default=True)
@click.option("--no-stream", is_flag=True, help="Ask for answers in one piece: no time to the first token is measured.")
@click.option("--same-prefix", is_flag=True, help="Let prompts share three quarters, as those of one application do.")
@click.option(
    "--slo",
    callback=_slo,
    metavar="ttft=MS,…",
    help="Count requests that keep to it as goodput: ttft=500,tpot=50,e2e=5000.",
)
@click.option(
    "--seed", type=click.IntRange(0, MOST), help="Ask the prompts of an earlier run again. [default: new ones]"
)
@click.option(
    "--svg", is_flag=False, flag_value="", metavar="[FILE]", help="Draw the figures. [default: bench-NAME.svg]"
)
@common
def bench(
    name: str,
    clients: tuple[int, ...],
    seconds: float | None,
    requests: int | None,
    prompt_tokens: int,
    tokens: int,
    endpoint: str,
    no_stream: bool,
    same_prefix: bool,
    slo: Slo | None,
    seed: int | None,
    svg: str | None,
    as_json: bool,
) -> None:
    """Load a deployment through the gateway and show what its clients see, for several numbers of clients.

    Each client asks again as soon as it was answered. All prompts differ from their first word on and from those of
    other runs, so that no cache of prompts helps. Ctrl-C shows what was measured so far.
    """
    from pressroom.cli._client import api_key
    from pressroom.cli._files import check_writable, write_text
    from pressroom.cli.talk import gateway_url
    from pressroom.gateway.bench import Bench, BenchSettings
    from pressroom.kernel import Workspace

    if seconds is not None and requests is not None:
        raise click.UsageError("give --seconds or --requests, not both")
    settings = BenchSettings(
        clients=clients,
        seconds=10.0 if seconds is None else seconds,
        requests=requests,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        endpoint=endpoint,
        stream=not no_stream,
        same_prefix=same_prefix,
        slo=slo,
        **({} if seed is None else {"seed": seed}),
    )
    drawing = None if svg is None else Path(svg or f"bench-{name.replace('/', '-')}.svg")
    if drawing is not None:
        check_writable(drawing)
    url, key = gateway_url(name), api_key()
    with Workspace.open() as workspace:
        rounds = _run(lambda told: Bench(url, name, settings, key=key, told=told), workspace, name, quiet=as_json)
    if as_json:
        print_json(_record(name, settings, rounds, drawing))
    else:
        click.secho(_heading(name, settings), bold=True)
        _tables(rounds)
    if drawing is not None and rounds:
        from pressroom.cli._bench_svg import bench_svg

        write_text(drawing, bench_svg(rounds, heading=_heading(name, settings)))
        if not as_json:
            click.echo(f"drawn to {drawing}")


def _run(make: Any, workspace: Workspace, name: str, *, quiet: bool) -> list[Round]:
    import asyncio

    import uvloop

    from pressroom.cli._progress import ProgressLines
    from pressroom.kernel import Progress

    def told(clients: int, done: int, of: int | None) -> None:
        task = f"{name}, {clients} client{'' if clients == 1 else 's'}"
        workspace.events.emit(Progress(task, done, of, unit="requests"))

    async def until_stopped() -> list[Round]:
        running: Bench = make(told)
        loop = asyncio.get_running_loop()
        working = asyncio.ensure_future(running.run())
        signals = 0

        def stop() -> None:
            nonlocal signals
            signals += 1
            running.stop() if signals == 1 else working.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        await asyncio.wait([working])
        if working.cancelled():
            raise KeyboardInterrupt
        return working.result()

    with ProgressLines(workspace, quiet=quiet), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(until_stopped())


def _heading(name: str, settings: BenchSettings) -> str:
    prefix = ", three quarters of the prompt shared" if settings.same_prefix else ""
    how = "streamed" if settings.stream else "in one piece"
    return (
        f"{name}: {settings.prompt_tokens} tokens asked, {settings.tokens} answered, {settings.endpoint}, {how}{prefix}"
    )


def _record(name: str, settings: BenchSettings, rounds: list[Round], drawing: Path | None) -> dict[str, Any]:
    import dataclasses

    record = {"deployment": name, "settings": dataclasses.asdict(settings), "rounds": [r.as_dict() for r in rounds]}
    return {**record, "svg": str(drawing)} if drawing is not None and rounds else record


def _tables(rounds: list[Round]) -> None:
    """Throughput, then latencies, then what went wrong."""
    slo = any(one.goodput_per_s is not None for one in rounds)
    table(
        [">clients", ">requests", ">requests/s", ">output tok/s", ">total tok/s", *([">goodput/s"] if slo else []),
         ">tokens in", ">cached", ">out", ">errors", ">load CPU"],
        [
            [str(one.clients), f"{one.requests:,}", _figure(one.requests_per_s), _figure(one.output_tokens_per_s),
             _figure(one.total_tokens_per_s), *([_figure(one.goodput_per_s or 0.0)] if slo else []),
             f"{one.prompt_tokens:.0f}", f"{one.cached_tokens:.0f}", f"{one.output_tokens:.0f}",
             f"{sum(number for number, _ in one.errors.values()):,}", f"{100 * one.generator_cpu:.0f} %"]
            for one in rounds
        ],
    )  # fmt: skip
    click.echo()
    table(
        [">ms at clients", ">first token p50", ">p90", ">p99", ">between p50", ">p99", ">a token p50",
         ">whole p50", ">p90", ">p99"],
        [
            [str(one.clients), *_shares(one.ttft_ms, "p50", "p90", "p99"), *_shares(one.itl_ms, "p50", "p99"),
             *_shares(one.tpot_ms, "p50"), *_shares(one.e2e_ms, "p50", "p90", "p99")]
            for one in rounds
        ],
    )  # fmt: skip
    told: set[str] = set()
    for one in rounds:
        for kind, (number, text) in one.errors.items():
            said = "" if kind in told else f": {text}"
            told.add(kind)
            click.secho(f"{one.clients} clients: {number:,} × {kind}{said}", fg="yellow", err=True)
        if one.unfinished:
            click.secho(f"{one.clients} clients: {one.unfinished:,} requests had not ended", fg="yellow", err=True)
        if one.interrupted:
            click.secho(f"{one.clients} clients: interrupted after {one.seconds:.1f} s", fg="yellow", err=True)
        if one.generator_cpu > _BUSY:
            click.secho(
                f"{one.clients} clients: the load generator itself was busy; more load would need another machine",
                fg="yellow",
                err=True,
            )


def _shares(spread: Spread | None, *names: str) -> list[str]:
    return ["-" if spread is None else _figure(getattr(spread, name)) for name in names]


def _figure(value: float) -> str:
    """Three digits that mean something, and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
