"""`press parity`: whether a running deployment says what its model says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from pressroom.cli._output import common, print_json, table

if TYPE_CHECKING:
    from pressroom.deploy import Deployment
    from pressroom.engines import Parity, ParityReference
    from pressroom.kernel import Workspace

_SHOWN = 38
# The worst last.
_VERDICTS = {
    "unchecked": ("yellow", "not checked"),
    "equal": ("green", "equal up to rounding"),
    "close": ("yellow", "close: as far apart as weights of fewer bits are from those they were made from"),
    "different": ("red", "different: this engine does not say what the reference says"),
}


@click.command(epilog="Example: press parity smollm2 --reference smollm2-bf16:1")
@click.argument("name")
@click.option("--reference", metavar="REF", help="Version to compare with; otherwise the one that runs.")
@common
def parity(name: str, reference: str | None, as_json: bool) -> None:
    """Compare what a running deployment says first after fixed prompts with what its weights say.

    Every copy of it is asked. The reference is computed from the weights by llama.cpp's library (GGUF) or transformers
    in float32 (safetensors), in a process that is gone afterwards, and kept. The exit status is 1 where a copy differs
    by more than rounding and fewer bits explain.
    """
    from pressroom.deploy import Deployments
    from pressroom.kernel import Workspace

    found: list[tuple[dict[str, Any], str, Parity]] = []
    with Workspace.open() as workspace:
        for copy in _copies(workspace, Deployments(workspace).get(name)):
            against = reference or (copy["ref"] if copy["digest"] else "")
            digest = None if reference else copy["digest"]
            found.append((copy, against, _checked(workspace, copy, against, digest, quiet=as_json)))
    worst = max((result.verdict for _, _, result in found), key=list(_VERDICTS).index)
    if as_json:
        copies = [
            {"ref": copy["ref"], "engine": copy["engine"], "against": against, **result.as_dict()}
            for copy, against, result in found
        ]
        print_json({"name": name, "verdict": worst, "copies": copies})
    else:
        for number, (copy, against, result) in enumerate(found):
            if number:
                click.echo()
            _show(name if len(found) == 1 else f"{name} on {copy['engine']}", copy["ref"], against, result)
    if worst == "different":
        raise click.exceptions.Exit(1)


def _copies(workspace: Workspace, wish: Deployment) -> list[dict[str, Any]]:
    """What answers for a deployment: version, engine, address and context of each copy."""
    from pressroom.deploy import Deployments, Phase
    from pressroom.kernel import DeployError

    seen = Deployments(workspace).observed(wish)
    found = [copy for copy in seen.copies if copy["state"] == Phase.READY.value and copy["url"]]
    if not found:
        raise DeployError(
            f"{wish.name} does not answer now: it is {seen.phase.value}",
            hint=f"Start it with: press deploy {wish.ref} --as {wish.name}",
            phase=seen.phase.value,
        )
    return found


def _checked(workspace: Workspace, copy: dict[str, Any], against: str, digest: str | None, *, quiet: bool) -> Parity:
    from pressroom.engines import Endpoint, Parity, check_parity

    if not against:
        return Parity(reason=f"{copy['engine']} runs no weights that there could be a reference for")
    address = urlsplit(copy["url"])
    assert address.hostname is not None and address.port is not None
    endpoint = Endpoint(host=address.hostname, port=address.port, pid=copy["pid"] or 0, context=copy["context"])
    return check_parity(
        endpoint,
        None,
        engine=copy["engine"],
        reference=lambda: _expected(workspace, against, digest, quiet=quiet),
    )


def _expected(workspace: Workspace, ref: str, digest: str | None, *, quiet: bool) -> ParityReference:
    """The distributions of a version, computed or kept from before."""
    from pressroom.engines import kept_reference
    from pressroom.kernel import Ref
    from pressroom.registry import Registry

    registry = Registry(workspace)
    version = registry.get(Ref(Ref.parse(ref).name, None, digest) if digest else ref)
    if not quiet:
        click.echo(f"comparing with {version.name}:{version.number}", err=True)
    return kept_reference(
        registry.materialise(version),
        digest=version.digest,
        folder=workspace.path("parity"),
        threads=workspace.settings.engines.threads,
    )


def _show(name: str, ref: str, against: str, found: Parity) -> None:
    colour, verdict = _VERDICTS[found.verdict]
    if found.kl_mean is None or found.kl_max is None or found.top1_agreement is None:
        click.secho(f"{name}: {verdict}", fg=colour, bold=True)
        click.echo(f"  {found.reason}")
        return
    rows = [
        [
            _short(row.prompt),
            str(row.tokens),
            f"{row.kl:.6f}",
            f"{row.expected} ({row.expected_probability:.3f})",
            f"{row.found} ({row.found_probability:.3f})",
            "" if row.agrees else "no",
        ]
        for row in found.prompts
    ]
    table(["PROMPT", ">TOKENS", ">KL (NAT)", ">EXPECTED", ">FOUND", "AGREES"], rows)
    click.echo()
    click.secho(f"{name}: {verdict}", fg=colour, bold=True)
    click.echo(f"  {ref} beside {against}: {found.reference}")
    click.echo(f"  KL mean {found.kl_mean:.6f}, largest {found.kl_max:.6f} nat; {found.how}")
    agrees = sum(row.agrees for row in found.prompts)
    asked_twice = "the same" if not found.repeats else f"off by {found.repeats:.2g} at most"
    click.echo(f"  likeliest token the same for {agrees} of {len(found.prompts)}; asked twice: {asked_twice}")


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= _SHOWN else "…" + line[1 - _SHOWN :]
