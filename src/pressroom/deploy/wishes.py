"""From what a person asks for to a complete wish: which version, on which engine, and what `auto` chooses among."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pressroom.deploy.base import AUTO, SIZES, Deployment, Phase, Variant, check_format, own_options
from pressroom.deploy.deployments import Deployments
from pressroom.engines import engine_class, engines_for
from pressroom.kernel import CapabilityError, DeployError, Ref, Workspace

if TYPE_CHECKING:
    from pressroom.registry import Registry
    from pressroom.registry.base import Version

# What fits into 32 bits, as engines and the database keep it.
_BOUNDS = dict(zip(SIZES, ((0, 2**31 - 1), (0, 1024), (0, 1024)), strict=True))
# Sooner, and an engine would be asleep before anybody saw it awake.
_SOONEST_S, _LATEST_S = 1.0, 1e9
# How a version is related to another form of the same model.
_OTHER_FORMS = ("quantised",)


def make_wish(
    workspace: Workspace,
    ref: str,
    *,
    name: str | None = None,
    engine: str | None = None,
    options: dict[str, Any] | None = None,
    also: Sequence[str] = (),
    replicas: int = 1,
    idle_stop_s: float | None = None,
) -> Deployment:
    """Write the wish to serve `ref`, after checking that the version is there and its engine can run it.

    `engine` is the setting's where it is not given. With "auto" it is the one that runs this kind of weights here;
    where there are several forms of the model (`also`, or a quantised child or parent of the version) they are chosen
    among by the load. The same wish again changes nothing, unless it failed or sleeps: then it is tried anew.

    Raises:
        NotFoundError: there is no such version.
        PluginError, CapabilityError: there is no such engine, or it does not run this kind of weights, or not here.
        DeployError: what was asked for contradicts itself.
    """
    _check_idle_stop(idle_stop_s)
    wanted = engine or workspace.settings.engine
    deployments = Deployments(workspace)
    more: dict[str, Any] = {"options": options, "replicas": replicas, "idle_stop_s": idle_stop_s}
    if (
        wanted != AUTO and not engine_class(wanted).formats
    ):  # an engine without weights (echo) answers for any reference
        parsed = Ref.parse(ref)
        _check_options(options, [wanted])
        wish = deployments.put(name or parsed.name, ref=str(parsed), digest="", engine=wanted, **more)
    else:
        from pressroom.registry import Registry

        registry = Registry(workspace)
        version = registry.get(ref)
        if wanted == AUTO:
            variants = list(_variants(workspace, registry, version, also))
        elif also:
            raise DeployError(
                f"other forms of {ref} were given, and {wanted!r} is to run it",
                hint=f"Choosing among forms is what `--engine {AUTO}` does.",
            )
        else:
            check_format(version, wanted, engine_class(wanted))
            variants = [Variant(ref=_named(version), digest=version.digest, engine=wanted)]
        several = len(variants) > 1
        if several and replicas > 1:
            raise DeployError(
                f"{replicas} replicas of {len(variants)} variants were asked for",
                hint="Replicas are copies of one engine: name it with --engine, or leave --replicas out.",
            )
        _check_options(options, [variant.engine for variant in variants])
        wish = deployments.put(
            name or version.name,
            ref=_named(version),
            digest=version.digest,
            engine=AUTO if several else variants[0].engine,
            variants=variants if several else (),
            **more,
        )
    again = deployments.observed(wish).phase in (Phase.FAILED, Phase.ASLEEP)
    return deployments.retry(wish.name) if again else wish


def _check_idle_stop(idle_stop_s: float | None) -> None:
    if idle_stop_s and not _SOONEST_S <= idle_stop_s <= _LATEST_S:
        raise DeployError(
            f"it is to fall asleep after {idle_stop_s:g} s",
            hint=f"It is 0 for never, or from {_SOONEST_S:g} to {_LATEST_S:g} seconds.",
        )


def _check_options(options: dict[str, Any] | None, engines: Sequence[str]) -> None:
    """Refuse what no engine of the deployment takes, before it is written down: it may be a secret."""
    given = options or {}
    for key in given:
        prefix, dot, _ = key.rpartition(".")
        if dot and prefix not in engines:
            raise DeployError(
                "an option is for an engine that this deployment does not use", hint=f"It runs on {', '.join(engines)}."
            )
    for name in engines:
        own = own_options(given, name)
        for size, (low, high) in _BOUNDS.items():
            value = own.get(size, low)
            if type(value) is not int or not low <= value <= high:
                raise DeployError(
                    f"{size} is {str(value)[:40]}", hint=f"It is a whole number from {low} to {high}.", asked=size
                )
        engine_class(name).check_options({key: value for key, value in own.items() if key not in SIZES})


def _variants(workspace: Workspace, registry: Registry, version: Version, also: Sequence[str]) -> Iterator[Variant]:
    """The forms of a model, each with the engine that runs it here, and no engine twice."""
    taken: set[str] = set()
    found = False
    others = [registry.get(ref) for ref in also] if also else _family(registry, version)
    for each in (version, *others):
        form = each.format
        usable = engines_for(workspace, form)
        if not usable and (each is version or also):
            raise _no_engine(workspace, each, form)
        for name in usable[:1]:
            if engine_class(name).elsewhere and (also or others):
                raise DeployError(
                    f"{_named(each)} runs at a vendor, and `auto` measures what it chooses among",
                    hint="Deploy it under a name of its own.",
                )
            if name not in taken:
                taken.add(name)
                found = True
                yield Variant(ref=_named(each), digest=each.digest, engine=name)
            elif also and each is not version:
                raise DeployError(
                    f"{_named(each)} would run on {name}, which runs another form already",
                    hint="`auto` chooses among engines: give it forms that different engines run.",
                )
    assert found


def _family(registry: Registry, version: Version) -> list[Version]:
    """Other forms of the same model: its quantised children, or what it was quantised from."""
    return [
        each
        for each in registry.list()
        if each.format != version.format
        and (
            (each.parent == version.digest and each.kind in _OTHER_FORMS)
            or (version.parent == each.digest and version.kind in _OTHER_FORMS)
        )
        and registry.holds(each)
    ]


def _no_engine(workspace: Workspace, version: Version, form: str) -> CapabilityError:
    from pressroom.engines import engine_names

    reasons = []
    for name in engine_names():
        kind = engine_class(name)
        if form in kind.formats:
            reasons.append(f"{name}: {kind.unusable(workspace)}")
    because = "; ".join(reasons) or "no engine loads this format"
    return CapabilityError(
        f"no engine here can run {_named(version)}: its format is {form}",
        hint=f"{because}. `press engines` lists them.",
        format=form,
    )


def _named(version: Version) -> str:
    return f"{version.name}:{version.number}"
