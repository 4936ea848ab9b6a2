"""`press compress`: fewer bytes for the same answers, measured on the file that was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, human_bytes, print_json, table
from pressroom.cli._progress import ProgressLines

if TYPE_CHECKING:
    from pressroom.cli._export import Target
    from pressroom.compress import CalibrationText, Made, Recipe
    from pressroom.compress.search import Goal, Outcome, Tried
    from pressroom.kernel import Workspace
    from pressroom.registry.base import Version

_SHOWN = ("perplexity", "kl_mean", "kl_p99", "top1_agreement", "tokens_per_second_1", "peak_memory_bytes")


@click.command(epilog="Example: press compress smollm2 --to int8")
@click.argument("ref")
@click.option("--to", metavar="FORMAT", help="A number format for all linear layers: int8, int4, q5_0, iq4_nl, …")
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path, dir_okay=False), help="A recipe in TOML.")
@click.option("--budget", metavar="SIZE|TIME", help="Search for the best file of at most 100MB, or 12ms a token.")
@click.option("--max-loss", metavar="SHARE", help="Search for the smallest file that loses at most 2% of perplexity.")
@click.option(
    "--target",
    "engine",
    type=click.Choice(("llamacpp", "transformers", "vllm")),
    help="The engine that it is for: alone, REF is only carried over into that engine's form.",
)
@click.option("--scheme", default="", help="With --target vllm: layers in w8a8, w4a16 (-g128, -g64, -g32), w8a16.")
@click.option(
    "--dtype", type=click.Choice(("bf16", "f16", "f32")), help="With --target: what weights are kept in; bf16."
)
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
@click.option("--save", "save", type=click.Path(path_type=Path, dir_okay=False), help="Write the found recipe there.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what the file would be, and make nothing.")
@click.option("--no-measure", is_flag=True, help="Leave its sheet for `press measure`.")
@common
def compress(
    ref: str,
    to: str | None,
    recipe_path: Path | None,
    budget: str | None,
    max_loss: str | None,
    engine: str | None,
    scheme: str,
    dtype: str | None,
    embedding: str,
    rounding: str,
    text: str | None,
    tokens: int | None,
    name: str | None,
    save: Path | None,
    only_plan: bool,
    no_measure: bool,
    as_json: bool,
) -> None:
    """Make a smaller version of REF: round its weights to another number format, follow a recipe, search for the
    best file within a budget, or carry it over into the form of another engine.

    The file is written, read again, registered with REF as its parent, and measured: perplexity, divergence from REF,
    tokens a second. What cannot be done is said before the work begins; no tensor falls back to another format.
    """
    from pressroom.cli import _export
    from pressroom.kernel import Workspace
    from pressroom.registry import Registry

    goal = _goal(to, recipe_path, budget, max_loss, alone=engine is not None)
    target = _export.target_of(engine, scheme, dtype)
    if goal is None and save is not None:
        raise click.UsageError("--save is for what a search finds: with --budget or --max-loss.")
    if goal is not None and (embedding or rounding != "gptq" or only_plan):
        raise click.UsageError("A search chooses by itself: --embedding, --rounding and --plan are not for it.")
    recipe = _asked(to, recipe_path, embedding=embedding, rounding=rounding)
    calibration = _calibration(recipe, text=text, tokens=tokens)
    with Workspace.open() as workspace, ProgressLines(workspace, quiet=as_json):
        version = Registry(workspace).get(ref)
        if goal is None and recipe is None:
            assert target is not None
            full = _export.check(workspace, version, target, run=not (no_measure or only_plan))
            if only_plan:
                _show_carried(version, target, full, as_json=as_json)
                return
            words = _text(workspace, None, calibration)[0] if target.scheme else ""
            done = _export.carry_over(
                workspace, version, target, name=name, text=words, tokens=calibration.tokens, run=not no_measure
            )
            _export.show(version, done, as_json=as_json)
            return
        origin = _as_gguf(workspace, version, make=not only_plan)
        further = None if target is None or target.engine == "llamacpp" else target
        if further is not None:
            _export.check(workspace, origin, further, run=not (no_measure or only_plan))
        if recipe is not None:
            recipe = dataclasses.replace(recipe, calibration=calibration)
            plan = _planned(Registry(workspace), origin, recipe)
            if only_plan:
                _show_plan(plan, as_json=as_json)
                return
        made, outcome, words = _made(
            workspace,
            origin,
            recipe or goal,
            calibration=calibration,
            name=None if further is not None else name,
            save=save,
            measured=not no_measure,
        )
        if further is not None:
            words = words or (_text(workspace, None, calibration)[0] if further.scheme else "")
            done = _export.carry_over(
                workspace, made.version, further, name=name, text=words, tokens=calibration.tokens, run=not no_measure
            )
            _export.show(made.version, done, as_json=as_json)
            return
    if as_json:
        more = {} if outcome is None else {"goal": str(goal), "tried": [one.as_dict() for one in outcome.tried]}
        print_json({**made.as_dict(), **more, "sheet": {one.name: one.value for one in made.version.sheet}})
        return
    if outcome is not None:
        _show_tried(outcome.tried, outcome.best)
    _show(origin, made)


def _made(
    workspace: Workspace,
    version: Version,
    asked: Recipe | Goal | None,
    *,
    calibration: CalibrationText,
    name: str | None,
    save: Path | None,
    measured: bool,
) -> tuple[Made, Outcome | None, str]:
    """Follow the recipe, or search for one and follow that; what was made, what was searched, and the text."""
    from pressroom.cli._measure import fill_sheet
    from pressroom.cli._search import link, search
    from pressroom.compress import Recipe
    from pressroom.compress import compress as carry_out
    from pressroom.registry import Registry

    assert asked is not None
    recipe = asked if isinstance(asked, Recipe) else None
    words, digest = _text(workspace, recipe, calibration)
    outcome = None
    runs: dict[int, str] = {}
    with ExitStack() as stack:
        if not isinstance(asked, Recipe):
            found = search(
                workspace,
                Registry(workspace),
                version,
                asked,
                calibration=calibration,
                text=words,
                text_digest=digest,
                runs=runs,
            )
            outcome = stack.enter_context(found)
            recipe = outcome.recipe
            if save is not None:
                _save(save, recipe)
        assert recipe is not None
        made = carry_out(
            workspace,
            version,
            recipe,
            name=name or f"{version.name}-{recipe.name}",
            text=words,
            text_digest=digest,
            kept=None if outcome is None else outcome.search.roundings.kept,
        )
    if outcome is not None and outcome.best.number in runs:
        link(workspace, runs[outcome.best.number], made.version)
    if measured:
        made = dataclasses.replace(made, version=fill_sheet(workspace, made.version.ref))
    return made, outcome, words


def _as_gguf(workspace: Workspace, version: Version, *, make: bool) -> Version:
    """The version in the form that is worked on, which a folder of safetensors is carried over to."""
    from pressroom.compress.export import as_gguf
    from pressroom.kernel import RecipeError

    if version.format == "gguf" or make:
        return as_gguf(workspace, version)
    called = f"{version.name}:{version.number}"
    raise RecipeError(
        f"{called} is {version.format}, and a plan is made of its GGUF file",
        hint=f"Make that first: press compress {called} --target llamacpp",
        ref=str(version.ref),
    )


def _goal(to: str | None, recipe: Path | None, budget: str | None, max_loss: str | None, *, alone: bool) -> Goal | None:
    """What a search is to keep to; None where it is said what to make, or (`alone`) nothing of these."""
    from pressroom.compress.search import budget as in_words
    from pressroom.compress.search import most_loss

    asked = sum(each is not None for each in (to, recipe, budget, max_loss))
    if asked > 1 or (asked == 0 and not alone):
        raise click.UsageError(
            "Say what to make: one of --to, --recipe, --budget and --max-loss; or --target alone, for another form."
        )
    if budget is not None:
        return in_words(budget)
    return None if max_loss is None else most_loss(max_loss)


def _calibration(recipe: Recipe | None, *, text: str | None, tokens: int | None) -> CalibrationText:
    """What is asked for, else what the recipe says."""
    from pressroom.compress import CalibrationText

    said = CalibrationText() if recipe is None else recipe.calibration
    return CalibrationText(text=text or said.text, tokens=tokens or said.tokens)


def _text(workspace: Workspace, recipe: Recipe | None, calibration: CalibrationText) -> tuple[str, str]:
    """The calibration text and its digest; empty where nothing looks at it."""
    from pressroom.registry import pull, read_text

    if recipe is not None and not recipe.calibrates:
        return "", ""
    source = pull(workspace, calibration.text or workspace.settings.compress.text, as_data=True)
    return read_text(workspace, source), source.digest


def _save(path: Path, recipe: Recipe) -> None:
    from pressroom.cli._files import write_text

    write_text(path, recipe.as_toml())
    click.echo(f"recipe written to {path}", err=True)


def _asked(to: str | None, path: Path | None, *, embedding: str, rounding: str) -> Recipe | None:
    from pressroom.compress import Recipe, Step, canonical, read_recipe

    if path is not None:
        if embedding or rounding != "gptq":
            raise click.UsageError("--embedding and --rounding stand in the recipe.")
        return read_recipe(path)
    if to is None:
        return None
    format = canonical(to)
    # The embedding is no product of inputs and weights: it is only put in another format where that is said.
    step = Step(to=format, targets=r"blk\..*", rounding=rounding)
    return Recipe(steps=(step,), embedding=canonical(embedding) if embedding else "", name=format)


def _show_carried(version: Version, target: Target, scheme: str, *, as_json: bool) -> None:
    """What carrying over will do."""
    if as_json:
        print_json({"ref": f"{version.name}:{version.number}", "target": target.engine, "scheme": scheme})
        return
    kept = f"its layers in {scheme}" if scheme else "its weights as they are"
    click.echo(f"{version.name}:{version.number} can be carried over to {target.engine}, {kept}")


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


def _show_tried(tried: Sequence[Tried], best: Tried) -> None:
    table(
        ["TRIED", ">SIZE", ">KL EXPECTED", ">KL", ">± 2 SE", ">MORE PERPLEXITY", *([">MS"] if best.ms else []), ""],
        [
            [
                f"{one.number}  {one.why}",
                human_bytes(one.size),
                f"{one.predicted:.4f}",
                f"{one.score.kl:.4f}",
                "" if one.score.kl_stderr is None else f"{2 * one.score.kl_stderr:.4f}",
                f"{one.score.loss:.2%}",
                *([f"{one.ms:.2f}"] if one.ms else []),
                "taken" if one is best else "",
            ]
            for one in tried
        ],
    )
    click.echo()


def _show(parent: Version, made: Made) -> None:
    from pressroom.cli._output import human_value

    version = made.version
    smaller = 1 - made.plan.size / made.plan.before
    click.echo(
        f"{version.name}:{version.number}  {human_bytes(made.plan.size)}, "
        f"{abs(smaller):.0%} {'smaller' if smaller >= 0 else 'larger'} than {parent.name}:{parent.number}, "
        f"{made.plan.bits_per_weight:.2f} bits a weight"
    )
    for step in made.steps:
        click.echo(f"{step.method}: " + ("; ".join(step.report.notes) or "done"))
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
