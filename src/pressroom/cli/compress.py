"""`press compress`: fewer bytes for the same answers, measured on the file that was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, human_bytes, print_json, table
from pressroom.cli._progress import ProgressLines

if TYPE_CHECKING:
    from pressroom.compress import Made, Recipe
    from pressroom.registry.base import Version

_SHOWN = ("perplexity", "kl_mean", "kl_p99", "top1_agreement", "tokens_per_second_1", "peak_memory_bytes")


@click.command(epilog="Example: press compress smollm2 --to int8")
@click.argument("ref")
@click.option("--to", metavar="FORMAT", help="A number format for all linear layers: int8, int4, q5_0, iq4_nl, …")
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path, dir_okay=False), help="A recipe in TOML.")
@click.option("--embedding", metavar="FORMAT", default="", help="Format of the embedding and the head; else kept.")
@click.option(
    "--rounding",
    type=click.Choice(("gptq", "nearest")),
    default="gptq",
    show_default=True,
    help="Let later columns make up for earlier ones' errors, or round each weight by itself.",
)
@click.option("--text", metavar="SOURCE", help="Calibration text, as `press pull` names it; else the setting's.")
@click.option("--tokens", type=click.IntRange(512, 10_000_000), help="Tokens of it that are looked at.")
@click.option("--as", "name", metavar="NAME", help="Name of what is made; else REF's name and the format.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what the file would be, and make nothing.")
@click.option("--no-measure", is_flag=True, help="Leave its sheet for `press measure`.")
@common
def compress(
    ref: str,
    to: str | None,
    recipe_path: Path | None,
    embedding: str,
    rounding: str,
    text: str | None,
    tokens: int | None,
    name: str | None,
    only_plan: bool,
    no_measure: bool,
    as_json: bool,
) -> None:
    """Make a smaller version of REF: round its weights to another number format, or follow a recipe.

    The file is written, read again, registered with REF as its parent, and measured: perplexity, divergence from REF,
    tokens a second. What cannot be done is said before the work begins; no tensor falls back to another format.
    """
    import dataclasses

    from pressroom.cli._measure import fill_sheet
    from pressroom.compress import compress as carry_out
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry, pull, read_text

    recipe = _asked(to, recipe_path, embedding=embedding, rounding=rounding)
    if tokens is not None or text is not None:
        old = recipe.calibration
        calibration = dataclasses.replace(old, text=text or old.text, tokens=tokens or old.tokens)
        recipe = dataclasses.replace(recipe, calibration=calibration)
    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        registry = Registry(workspace)
        version = registry.get(ref)
        plan = _planned(registry, version, recipe)
        if only_plan:
            _show_plan(plan, as_json=as_json)
            return
        words, digest = "", ""
        if recipe.calibrates:
            source = pull(workspace, recipe.calibration.text or workspace.settings.compress.text, as_data=True)
            words, digest = read_text(workspace, source), source.digest
        called = name or f"{version.name}-{recipe.name}"
        made = carry_out(workspace, version, recipe, name=called, text=words, text_digest=digest)
        if not no_measure:
            made = dataclasses.replace(made, version=fill_sheet(workspace, made.version.ref))
    if as_json:
        print_json({**made.as_dict(), "sheet": {one.name: one.value for one in made.version.sheet}})
    else:
        _show(version, made)


def _asked(to: str | None, path: Path | None, *, embedding: str, rounding: str) -> Recipe:
    from pressroom.compress import Recipe, Step, canonical, read_recipe

    if (to is None) == (path is None):
        raise click.UsageError("Say what to make: --to FORMAT or --recipe FILE.")
    if path is not None:
        if embedding or rounding != "gptq":
            raise click.UsageError("--embedding and --rounding stand in the recipe.")
        return read_recipe(path)
    assert to is not None
    format = canonical(to)
    # The embedding is no product of inputs and weights: it is only put in another format where that is said.
    step = Step(to=format, targets=r"blk\..*", rounding=rounding)
    return Recipe(steps=(step,), embedding=canonical(embedding) if embedding else "", name=format)


def _planned(registry: Any, version: Version, recipe: Recipe) -> Any:
    """What the file will be: what cannot be done is known before a text is fetched."""
    from pressroom.compress import planned
    from pressroom.compress.weights import open_weights
    from pressroom.kernel import RecipeError

    if version.format != "gguf":
        raise RecipeError(
            f"{version.name}:{version.number} is {version.format}, and only GGUF weights are compressed so far",
            hint="Pull a GGUF file of the model.",
            ref=str(version.ref),
        )
    with open_weights(registry.materialise(version), called=f"{version.name}:{version.number}") as source:
        return planned(source, recipe)


def _show_plan(plan: Any, *, as_json: bool) -> None:
    types = [
        {"type": name, "tensors": tensors, "weights": weights, "bytes": size}
        for name, (tensors, weights, size) in plan.types.items()
    ]
    if as_json:
        whole = {"bytes": plan.size, "bytes_before": plan.before, "bits_per_weight": plan.bits_per_weight}
        print_json({**whole, "covered": plan.covered, "tied": plan.tied, "types": types})
        return
    table(
        ["TYPE", ">TENSORS", ">WEIGHTS", ">SIZE"],
        [[one["type"], str(one["tensors"]), f"{one['weights']:,}", human_bytes(one["bytes"])] for one in types],
    )
    click.echo(f"{human_bytes(plan.before)} → {human_bytes(plan.size)}, {plan.bits_per_weight:.2f} bits a weight")


def _show(parent: Version, made: Made) -> None:
    from pressroom.cli._output import human_value

    version = made.version
    smaller = 1 - made.plan.size / made.plan.before
    click.echo(
        f"{version.name}:{version.number}  {human_bytes(made.plan.size)}, "
        f"{abs(smaller):.0%} {'smaller' if smaller >= 0 else 'larger'} than {parent.name}:{parent.number}, "
        f"{made.plan.bits_per_weight:.2f} bits a weight"
    )
    kept = [one for one in made.tensors if one.fallback]
    if kept:
        click.secho(f"rounded plainly, because their inputs say too little: {', '.join(one.name for one in kept)}")
    rows = []
    for name in _SHOWN:
        figure, before = version.figure(name), parent.figure(name)
        if figure is not None:
            now, then = (("" if one is None else human_value(one.value, one.unit)) for one in (figure, before))
            rows.append([name, now, then])
    if rows:
        table(["FIGURE", ">THIS", f">{parent.name}:{parent.number}"], rows)
    click.secho(f"\nAll that was made from it: press frontier {parent.name}:{parent.number}", dim=True)
