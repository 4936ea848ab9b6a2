"""`press feed`: messages of a broker in, answers of a deployment out."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import signal
from typing import TYPE_CHECKING

import click

from pressroom.cli._output import common, count, print_json
from pressroom.cli._types import Number

if TYPE_CHECKING:
    from pressroom.gateway.feeds import Address, Broker, Counts, FeedWorker
    from pressroom.kernel import Workspace

_SHOWN_S = 0.5


@click.command(
    epilog="Example: press feed --deployment smollm2 --from nats://localhost:4222/requests --to "
    "nats://localhost:4222/answers"
)
@click.option("--deployment", "name", required=True, metavar="NAME", help="The deployment that answers.")
@click.option(
    "--from", "read", required=True, metavar="URL", help="Where requests come from: nats://host:4222/SUBJECT."
)
@click.option("--to", "write", required=True, metavar="URL", help="Where answers go: kafka://host:9092/TOPIC.")
@click.option("--errors", metavar="URL", help="Where messages go that cannot be answered; without it, to the answers.")
@click.option("--group", help="Who shares the messages of the source. [default: press-NAME]")
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=8, show_default=True, help="Requests at once.")
@click.option(
    "--endpoint",
    type=click.Choice(["chat", "completions", "embeddings"]),
    default="chat",
    show_default=True,
    help="What a message of plain text is sent to.",
)
@click.option("--stream", is_flag=True, help="One message for each piece of an answer, and a last one with all of it.")
@click.option("--whole", is_flag=True, help="Put the whole body of the answer into the message, as `response`.")
@click.option(
    "--max-deliveries", type=click.IntRange(1, 1000), default=5, show_default=True, help="Tries a message has."
)
@click.option(
    "--ack-wait",
    type=Number(1, 3600),
    default=30.0,
    show_default=True,
    help="Seconds until the messages of a worker that was killed go to another.",
)
@click.option("--no-jetstream", is_flag=True, help="Plain subjects of NATS: nothing is kept, requests get replies.")
@common
def feed(
    name: str,
    read: str,
    write: str,
    errors: str | None,
    group: str | None,
    concurrency: int,
    endpoint: str,
    stream: bool,
    whole: bool,
    max_deliveries: int,
    ack_wait: float,
    no_jetstream: bool,
    as_json: bool,
) -> None:
    """Answer the messages of a NATS subject or a Kafka topic, at least once each, until Ctrl-C.

    A message is plain text or JSON: {"prompt": …}, {"messages": …} or a whole body as OpenAI's API takes it.
    Credentials come from the environment: NATS_CREDS, NATS_USER, NATS_PASSWORD, KAFKA_USERNAME, KAFKA_PASSWORD, ….
    """
    from pressroom.cli._client import api_key
    from pressroom.cli.talk import gateway_url
    from pressroom.gateway.feeds import FeedSettings, FeedWorker, parse_address
    from pressroom.kernel import Workspace

    source, sink = parse_address(read), parse_address(write)
    failed = parse_address(errors) if errors is not None else None
    brokers = _brokers(source, sink, failed, durable=not no_jetstream)
    settings = FeedSettings(
        group=group if group is not None else _group_of(name),
        concurrency=concurrency,
        max_deliveries=max_deliveries,
        ack_wait_s=ack_wait,
        durable=not no_jetstream,
    )
    worker = FeedWorker(
        brokers[source.scheme].source(source, settings),
        brokers[sink.scheme].sink(sink, settings),
        errors=brokers[failed.scheme].sink(failed, settings) if failed is not None else None,
        url=gateway_url(name),
        key=api_key(),
        model=name,
        settings=settings,
        text_as=endpoint,
        stream=stream,
        keep_body=whole,
    )
    with Workspace.open() as workspace:
        counts = _run(worker, workspace, f"{source} → {name} → {sink}", quiet=as_json)
    if as_json:
        print_json(counts.as_dict())
    else:
        click.echo(
            f"{count(counts.answered, 'message')} answered, {counts.refused:,} refused, "
            f"{counts.returned:,} given back; {counts.prompt_tokens:,} + {counts.completion_tokens:,} tokens"
        )


def _brokers(source: Address, *sinks: Address | None, durable: bool) -> dict[str, Broker]:
    """The brokers of these addresses by scheme, after a look at whether the addresses go together."""
    from pressroom.gateway.feeds import FeedAddressError, broker_for

    brokers: dict[str, Broker] = {}
    for address in (source, *sinks):
        if address is None:
            continue
        if address.scheme not in brokers:
            brokers[address.scheme] = broker_for(address.scheme, os.environ)
        broker = brokers[address.scheme]
        broker.check(address)
        if not durable and not broker.fleeting:
            raise FeedAddressError(
                f"{address} always keeps its messages", hint="Leave --no-jetstream out: it is for NATS on both sides."
            )
        circle = address is not source and address.scheme == source.scheme and _meet(source, address)
        if circle and broker.overlap(source.name, address.name):
            raise FeedAddressError(
                f"what is written to {address} would be read again from {source}",
                hint="Write the answers and the errors somewhere else.",
            )
    return brokers


def _meet(one: Address, other: Address) -> bool:
    """Whether the two are on the same servers, as far as their names tell."""
    first, second = ({host.replace("localhost", "127.0.0.1") for host in address.hosts} for address in (one, other))
    return bool(first & second)


def _group_of(name: str) -> str:
    """A name for the group that no other deployment has, and that every broker takes."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:48]
    return f"press-{plain}" if plain == name else f"press-{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _run(worker: FeedWorker, workspace: Workspace, what: str, *, quiet: bool) -> Counts:
    import asyncio

    import uvloop

    from pressroom.cli._progress import ProgressLines

    notes = _Notes(workspace)
    root = logging.getLogger()
    # The libraries of the brokers speak of each try to connect; what matters of it our own backends say.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if not quiet:
        root.addHandler(notes)
    try:
        with ProgressLines(workspace, quiet=quiet), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_stopped(worker, workspace, what))
    finally:
        root.removeHandler(notes)


async def _until_stopped(worker: FeedWorker, workspace: Workspace, what: str) -> Counts:
    import asyncio

    from pressroom.kernel import Note, Progress

    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(
        worker.run(
            started=lambda: workspace.events.emit(Note(f"{what}; Ctrl-C ends it when what it holds is answered"))
        )
    )
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            worker.stop()
            held = worker.counts.in_flight
            workspace.events.emit(Note(f"ending after {count(held, 'request')} in flight; Ctrl-C again ends at once"))
        else:
            working.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    told = -1
    while not working.done():
        await asyncio.wait([working], timeout=_SHOWN_S)
        if worker.counts.answered != told:
            told = worker.counts.answered
            workspace.events.emit(Progress("answered", told, unit="messages"))
    if working.cancelled():
        raise KeyboardInterrupt
    return working.result()


class _Notes(logging.Handler):
    """Warnings as notes, so that they do not run into the line of progress."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(logging.WARNING)
        self._workspace = workspace

    def emit(self, record: logging.LogRecord) -> None:
        from pressroom.kernel import Note

        self._workspace.events.emit(Note(record.getMessage()))
