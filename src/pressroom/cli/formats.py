"""`press formats`: the number formats that weights can be kept in, and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pressroom.cli._output import common, print_json, table

if TYPE_CHECKING:
    from pressroom.cli._weights_svg import BeforeAfter
    from pressroom.compress.numbers import NumberFormat

#: Weights that are looked at of a large tensor.
_MOST = 1 << 22


@click.command(
    epilog="Examples: press formats --svg values.svg; press formats q4_0 --svg bits.svg; "
    "press formats int4 --weights smollm2 --tensor blk.0.ffn_up.weight --svg weights.svg"
)
@click.argument("name", required=False)
@click.option("--weights", metavar="REF", help="Look at the weights of this version before and after.")
@click.option("--tensor", metavar="NAME", help="Which of its tensors; otherwise the first linear layer.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file.")
@common
def formats(name: str | None, weights: str | None, tensor: str | None, svg: Path | None, as_json: bool) -> None:
    """Number formats: bits a weight, what shares a scale, which values there are, what runs them.

    Without NAME: all of them; the drawing has the values that a weight can take. With NAME (q4_0, nf4, int4-g64-asym,
    int8-channel, t2-g128): that one; the drawing has every bit of a block.

    With --weights: a tensor of REF before and after. With NAME it is rounded to that format, each weight to the nearest
    value; without, REF is compared with the version that it was made from.
    """
    from pressroom.cli._files import check_writable
    from pressroom.kernel import RecipeError

    if tensor and not weights:
        raise RecipeError("--tensor names a tensor of a version", hint="Name the version: --weights REF.")
    if svg is not None:
        check_writable(svg)
    form = None if name is None else _form(name)
    if weights is not None:
        _compare(weights, form, tensor, svg, as_json=as_json)
    elif form is not None:
        _one(form, svg, as_json=as_json)
    else:
        _all(svg, as_json=as_json)


def _form(name: str) -> NumberFormat:
    from pressroom.compress import canonical
    from pressroom.compress.numbers import number_format

    return number_format(canonical(name))


def _listed() -> list[NumberFormat]:
    from pressroom.compress.numbers import Uniform, number_format
    from pressroom.compress.numbers import formats as every

    family = [number_format(name) for name in Uniform.examples]
    return sorted([*every(), *family], key=lambda form: (-form.bits, form.name))


def _all(svg: Path | None, *, as_json: bool) -> None:
    from pressroom.cli._files import write_text
    from pressroom.cli._formats_svg import values_svg
    from pressroom.cli._formats_told import FLOATS, told

    forms = _listed()
    rows = [told(form) for form in forms]
    if svg is not None:
        write_text(svg, values_svg([form for form in forms if form.name not in FLOATS]))
    if as_json:
        print_json({"formats": [row.as_dict() for row in rows]})
        return
    table(
        ["NAME", ">BITS", ">ONE SCALE FOR", "VALUES", "RUN BY"],
        [[row.name, f"{row.bits:.4g}", row.block, row.values, row.run_by] for row in rows],
    )
    click.secho(
        "\nint2 to int8, -asym or not, go with any group that is a multiple of 8: int5-g48, int3-g64-asym; t2 too.",
        dim=True,
    )
    _drawn(svg)


def _one(form: NumberFormat, svg: Path | None, *, as_json: bool) -> None:
    from pressroom.cli._files import write_text
    from pressroom.cli._formats_svg import layout_svg
    from pressroom.cli._formats_told import told

    row = told(form)
    if svg is not None:
        write_text(svg, layout_svg(form))
    if as_json:
        pieces = [
            {"at": one.at, "bits": one.bits, "field": one.field, "items": list(one.items), "low": one.low}
            for one in (form.layout() if form.block else ())
        ]
        print_json({**row.as_dict(), "layout": pieces})
        return
    size = f" in {form.nbytes} bytes" if row.nbytes else ""
    one = f"weights of a block{size}" if row.block.isdigit() else "the reach of a scale"
    for label, text in (
        ("bits a weight", f"{row.bits:.4g}"),
        (one, row.block),
        ("values", row.values),
        ("run by", row.run_by),
    ):
        click.echo(f"{label:32}  {text}")
    _drawn(svg)


def _compare(ref: str, form: NumberFormat | None, tensor: str | None, svg: Path | None, *, as_json: bool) -> None:
    from pressroom.cli._files import write_text
    from pressroom.cli._weights_svg import weights_svg

    found = _before_after(ref, form, tensor)
    if svg is not None:
        write_text(svg, weights_svg(found))
    facts = found.as_dict()
    if as_json:
        print_json(facts)
        return
    click.secho(f"{found.name}: {found.before} and {found.after}", bold=True)
    for label, text in (
        ("weights", f"{found.of:,}"),
        ("lost of their squares", f"{found.error:.4%}"),
        ("root mean square", f"{facts['rms']:.4g}"),
        ("  of the error", f"{facts['error_rms']:.4g}"),
        ("largest error", f"{facts['error_largest']:.4g}"),
        ("exactly 0", f"{facts['zeros']:.2%}"),
    ):
        click.echo(f"  {label:22}  {text}")
    _drawn(svg)


def _before_after(ref: str, form: NumberFormat | None, tensor: str | None) -> BeforeAfter:
    from pressroom.cli._weights_svg import BeforeAfter
    from pressroom.compress.weights import open_weights
    from pressroom.kernel import NotFoundError, RecipeError, Workspace
    from pressroom.registry import Registry

    with Workspace.open() as workspace:
        registry = Registry(workspace)
        version = registry.get(ref)
        called = f"{version.name}:{version.number}"
        with open_weights(registry.materialise(version), called=called) as source:
            if tensor is None:
                if not source.linears:
                    raise RecipeError(f"{called} has no linear layer", hint="Name a tensor: --tensor NAME.", ref=called)
                tensor = source.linears[0].name
            one = source.tensor(tensor)
            # Rows from all over a large tensor, so many that it takes seconds.
            step = max(1, -(-one.elements // _MOST))
            rows = _rows(source, tensor, step)
            if form is not None:
                bound = form.bound(rows)
                return BeforeAfter(
                    name=tensor,
                    before=f"{called} ({one.type})",
                    after=form.name,
                    first=rows,
                    second=bound.decode(bound.encode(rows)),
                    of=one.elements,
                    bits=bound.bits,
                )
            parent = next((each for each in registry.list() if each.digest == version.parent), None)
            if parent is None:
                raise NotFoundError(
                    f"{called} was made from no version that is here",
                    hint="Name a format to round it to: press formats q4_0 --weights REF.",
                    ref=called,
                )
            origin_name = f"{parent.name}:{parent.number}"
            with open_weights(registry.materialise(parent), called=origin_name) as origin:
                other = origin.tensor(tensor)
                if other.shape != one.shape:
                    raise RecipeError(
                        f"{tensor} is {list(one.shape)} in {called} and {list(other.shape)} in {origin_name}",
                        hint="Only tensors of one shape can be laid side by side.",
                        tensor=tensor,
                    )
                return BeforeAfter(
                    name=tensor,
                    before=f"{origin_name} ({other.type})",
                    after=f"{called} ({one.type})",
                    first=_rows(origin, tensor, step),
                    second=rows,
                    of=one.elements,
                    bits=8 * one.nbytes / one.elements,
                )


def _rows(source: Any, tensor: str, step: int) -> Any:
    import numpy as np

    if step == 1:
        return source.rows(tensor)
    count = source.tensor(tensor).rows
    return np.concatenate([source.rows(tensor, at, at + 1) for at in range(0, count, step)])


def _drawn(svg: Path | None) -> None:
    if svg is not None:
        click.echo(f"drawn in {svg}", err=True)
