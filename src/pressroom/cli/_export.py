"""`press compress --target`: a version in the form of another engine, run there before it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from pressroom.cli._output import human_bytes, print_json, table

if TYPE_CHECKING:
    from pressroom.compress.export import Exported
    from pressroom.kernel import Workspace
    from pressroom.registry.base import Version


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is to come of a version: the engine's name, and how its weights are kept there."""

    engine: str
    scheme: str
    dtype: str


def target_of(engine: str | None, scheme: str, dtype: str | None) -> Target | None:
    """What was asked for; None where no engine was named. Raises UsageError."""
    if scheme and engine != "vllm":
        raise click.UsageError("--scheme is for --target vllm.")
    if dtype is not None and engine in (None, "llamacpp"):
        raise click.UsageError("--dtype is for --target transformers and vllm.")
    return None if engine is None else Target(engine=engine, scheme=scheme, dtype=dtype or "bf16")


def check(workspace: Workspace, version: Version, target: Target, *, run: bool) -> str:
    """Say in seconds what cannot be done; the scheme in full. Raises RecipeError, CapabilityError."""
    from pressroom.cli._export_check import must_run
    from pressroom.compress.export import check_export

    found = check_export(workspace, version, target=target.engine, scheme=target.scheme, dtype=target.dtype)
    if run:
        must_run(workspace, target.engine)
    return found


def carry_over(
    workspace: Workspace, version: Version, target: Target, *, name: str | None, text: str, tokens: int, run: bool
) -> Exported:
    """Write it, register it, and run it in its engine beside the version it was made of."""
    import dataclasses

    from pressroom.cli._export_check import run_exported
    from pressroom.compress.export import export
    from pressroom.registry import Registry, pull, read_text

    done = export(
        workspace,
        version,
        target=target.engine,
        scheme=target.scheme,
        dtype=target.dtype,
        name=name or f"{version.name}-{'gguf' if target.engine == 'llamacpp' else target.engine}",
        text=text,
        tokens=tokens,
    )
    if run:
        measured = read_text(workspace, pull(workspace, workspace.settings.measure.text, as_data=True))
        run_exported(workspace, done.version, target.engine, parent=version, text=measured)
        done = dataclasses.replace(done, version=Registry(workspace).get(done.version.ref))
    return done


def show(parent: Version, done: Exported, *, as_json: bool) -> None:
    """What came of it."""
    from pressroom.cli._output import human_value

    if as_json:
        print_json({**done.as_dict(), "sheet": {one.name: one.value for one in done.version.sheet}})
        return
    version = done.version
    kept = f", layers in {done.scheme}" if done.scheme else ""
    click.echo(
        f"{version.name}:{version.number}  {human_bytes(version.size)}, made of {parent.name}:{parent.number} "
        f"({human_bytes(parent.size)}) for {done.target}{kept}"
    )
    plain = [one.name for one in done.layers if one.fallback]
    if plain:
        click.echo(f"rounded plainly, because their inputs say too little: {', '.join(plain)}")
    rows = [[one.name, human_value(one.value, one.unit)] for one in version.sheet]
    if rows:
        table(["FIGURE", ">"], rows)
