"""The root of the command line: which file holds which command, and how every command fails.

`press --help` reads this table only; a command's file is imported when it is called.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from pressroom._version import __version__

# name → (module, one line for `press --help`); the function has the name of the command, save where that is Python's.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Everything: pull a model, measure it, serve it, ask it."),
    "pull": ("models", "Bring a model (or data) into the registry."),
    "list": ("models", "Registered versions."),
    "show": ("models", "The sheet of a version: what it is and what was measured."),
    "measure": ("models", "Measure a version again and write its sheet."),
    "tag": ("models", "Put tags on a version, or take them away."),
    "describe": ("models", "Say in a sentence what a version is."),
    "rm": ("models", "Remove a version and the bytes only it uses."),
    "promote": ("promotion", "Let an alias point to a version, if its sheet meets the floor."),
    "demote": ("promotion", "Let an alias point to nothing."),
    "floor": ("promotion", "What a sheet must say before an alias may point to it."),
    "history": ("promotion", "Every move of a model's aliases and floors, and every refusal."),
    "compress": ("compress", "Fewer bytes for the same answers, measured on the written file."),
    "formats": ("formats", "Number formats: bits, values, engines; pictures of them and of weights."),
    "frontier": ("frontier", "What was made from a version: bytes against divergence."),
    "lineage": ("lineage", "The family of a version as a tree, in the terminal and as an SVG."),
    "diff": ("lineage", "What differs between two versions: tensors, metadata, files."),
    "gc": ("storage", "Give back the space of what nothing refers to."),
    "verify": ("storage", "Read every byte again and say what is damaged or missing."),
    "get": ("storage", "Write the plain files of a version into a directory."),
    "export": ("storage", "Write versions into one file that another workspace can verify."),
    "import": ("storage", "Register what such a file holds, once all of it was verified."),
    "keys": ("keys", "Who may ask, read, write and promote, and how much."),
    "budget": ("budget", "What keys, teams and deployments may spend or use, by day or month."),
    "ledger": ("ledger", "One row a request: list, export, forget."),
    "cost": ("cost", "What was spent, what own tokens cost, and when they pay."),
    "runs": ("runs", "Tracked runs: what was tried and what came of it."),
    "deploy": ("serving", "Serve a version under a name."),
    "plan": ("rollout", "What the files of deployments would change."),
    "apply": ("rollout", "Bring about what the files of deployments say."),
    "rollback": ("rollout", "Go back to what answered before."),
    "rollouts": ("rollout", "What became of the versions of a deployment."),
    "serve": ("serving", "Run the server in the foreground."),
    "ps": ("serving", "What runs."),
    "logs": ("serving", "What an engine wrote."),
    "stop": ("serving", "Stop a deployment, or the whole server."),
    "ask": ("talk", "Ask a deployment one question."),
    "chat": ("talk", "Talk with a deployment."),
    "batch": ("batch", "Answer every line of a file, and go on where it was."),
    "parity": ("parity", "Whether a deployment says what its model says."),
    "engines": ("engines", "Which engines there are, which can be used here, and installing one."),
    "bench": ("bench", "Load on a deployment: figures and a plot."),
    "feed": ("feed", "Answer the messages of a subject or topic, and publish the answers."),
    "conformance": ("conformance", "What a deployment does of what the protocols promise."),
    "doctor": ("doctor", "What this machine has, what is missing, what to do."),
}

_FUNCTIONS = {"list": "list_", "import": "import_"}


class LazyGroup(click.Group):
    """A click group whose commands are imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pressroom.cli.{COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, _FUNCTIONS.get(cmd_name, cmd_name))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from pressroom.kernel.errors import did_you_mean

            hint = did_you_mean(args[0], COMMANDS, otherwise="`press --help` lists the commands.")
            raise click.UsageError(f"there is no command {args[0]!r}. {hint}", ctx) from error


@click.group(
    cls=LazyGroup,
    invoke_without_command=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: press up",
)
@click.version_option(__version__, message="press %(version)s")
def press() -> None:
    """From a language model's weights to a product.

    Every command has --json for scripts, and --help with an example.
    """


def main(args: list[str] | None = None) -> None:
    """Run `press` and exit: 0 on success, 1 on an error, 2 on wrong usage, 130 on Ctrl-C."""
    arguments = sys.argv[1:] if args is None else args
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run `press` with these arguments and return its exit code."""
    debug = "--debug" in arguments
    as_json = "--json" in arguments
    try:
        result: Any = press.main(args=arguments, prog_name="press", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        click.echo("", err=True)
        return 130
    except click.ClickException as error:
        if as_json:
            _print_json_error({"code": "usage", "message": error.format_message(), "hint": ""})
        else:
            error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`press list | head`): not an error of ours. Python would complain again
        # when it flushes standard output at exit.
        sys.stdout = None
        return 141
    except Exception as error:  # the edge of the process: say it plainly, the traceback on request
        if debug:
            raise
        return _report(error, as_json=as_json)


def _report(error: Exception, *, as_json: bool) -> int:
    from pressroom.kernel.errors import PressroomError

    if isinstance(error, PressroomError):
        record = error.as_dict()
    elif isinstance(error, OSError):  # a terminal or a file that output goes to, most of all
        record = {"code": "os", "message": str(error), "hint": "Check the disk, and where the output goes."}
    else:
        record = {
            "code": "internal",
            "message": f"{type(error).__name__}: {error}",
            "hint": "This is a fault of Pressroom. Run the same command with --debug for the traceback and report it.",
        }
    if as_json:
        _print_json_error(record)
    else:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {record['message']}", err=True)
        if record["hint"]:
            click.echo(f"  {record['hint']}", err=True)
    return 1


def _print_json_error(record: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps({"error": record}, default=str))
