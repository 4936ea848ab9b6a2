"""From what a person asks for to a complete wish: which version, on which engine, and what `auto` chooses among."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pressroom.deploy._telling import check_terms
from pressroom.deploy.base import (
    AUTO,
    MAIN,
    SIZES,
    Deployment,
    Phase,
    RouteWish,
    Variant,
    check_format,
    own_options,
)
from pressroom.deploy.checks import Checks
from pressroom.deploy.deployments import Deployments
from pressroom.deploy.fleet import is_elsewhere
from pressroom.engines import engine_class, engines_for
from pressroom.kernel import CapabilityError, DeployError, Ref, Workspace, did_you_mean

if TYPE_CHECKING:
    from pressroom.deploy.file import DeploymentFile
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
    checks: Checks | None = None,
    on_route: str | None = None,
) -> Deployment:
    """Write the wish to serve `ref`, after checking that the version is there and its engine can run it. Where the
    name has routes from a file, it goes to `on_route`, or to the only one of one's own; the others stay as they are.

    `engine` is the setting's where it is not given. With "auto" it is the one that runs this kind of weights here;
    where there are several forms of the model (`also`, or a quantised child or parent of the version) they are chosen
    among by the load. `checks` are what it goes through where the name is answered by another version already; the
    usual ones where they are not given. The same wish again changes nothing, unless it failed or sleeps: then it is
    tried anew.

    Raises:
        NotFoundError: there is no such version.
        PluginError, CapabilityError: there is no such engine, or it does not run this kind of weights, or not here.
        DeployError: what was asked for contradicts itself.
    """
    route = make_route(
        workspace,
        ref,
        name=MAIN,
        engine=engine,
        options=options,
        also=also,
        replicas=replicas,
        idle_stop_s=idle_stop_s,
    )
    deployments = Deployments(workspace)
    checks = checks or Checks.parse({}, workspace.settings.rollout)
    name = name or Ref.parse(route.ref).name
    before = next((wish for wish in deployments.list() if wish.name == name), None)
    if before is not None and before.routes:
        said = _onto(before, route, on_route)
        return tried_again(deployments, _put(deployments, said, before.policy, before.cache, name, checks.as_dict()))
    if on_route not in (None, MAIN):
        raise DeployError(
            f"{name} has no route {on_route!r}: it has one that nobody named", hint="Leave --route out.", asked=on_route
        )
    wish = deployments.put(
        name,
        ref=route.ref,
        digest=route.digest,
        engine=route.engine,
        options=route.options,
        variants=route.variants,
        replicas=route.replicas,
        idle_stop_s=route.idle_stop_s,
        rollout=checks.as_dict(),
    )
    return tried_again(deployments, wish)


def apply(workspace: Workspace, said: DeploymentFile) -> Deployment:
    """Wish what a file says. The same again changes nothing, unless it failed: then it is tried anew."""
    deployments = Deployments(workspace)
    return tried_again(deployments, _put(deployments, said.routes, said.policy, said.cache, said.name, said.rollout))


def _put(
    deployments: Deployments,
    routes: Sequence[RouteWish],
    policy: dict[str, Any],
    cache: dict[str, Any],
    name: str,
    rollout: dict[str, Any],
) -> Deployment:
    first = routes[0]
    return deployments.put(
        name,
        ref=first.ref,
        digest=first.digest,
        engine=first.engine,
        options=first.options,
        variants=first.variants,
        replicas=first.replicas,
        idle_stop_s=first.idle_stop_s,
        routes=routes,
        policy=policy,
        cache=cache,
        rollout=rollout,
    )


def _onto(before: Deployment, route: RouteWish, asked: str | None) -> list[RouteWish]:
    """The routes of a deployment with another version on one of them."""
    own = [way for way in before.routes if not is_elsewhere(way.engine)]
    names = [way.name for way in before.routes]
    if asked is None:
        if len(own) != 1:
            raise DeployError(
                f"{before.name} has the routes {', '.join(names)}: it is not clear which of them {route.ref} is for",
                hint="Name it with --route, or change the deployment's file and `press apply` it.",
                known=names,
            )
        asked = own[0].name
    if asked not in names:
        raise DeployError(
            f"{before.name} has no route {asked!r}",
            hint=did_you_mean(asked, names, otherwise=f"It has {', '.join(names)}."),
            asked=asked,
            known=names,
        )
    old = before.routes[names.index(asked)]
    new = dataclasses.replace(
        route,
        name=old.name,
        weight=old.weight,
        price=old.price if (old.ref, old.digest) == (route.ref, route.digest) else None,
        idle_stop_s=old.idle_stop_s if route.idle_stop_s is None else route.idle_stop_s,
    )
    routes = [new if way is old else way for way in before.routes]
    check_terms(before.policy, routes)
    return routes


def tried_again(deployments: Deployments, wish: Deployment) -> Deployment:
    """The wish, asked for anew where it failed or sleeps."""
    again = deployments.observed(wish).phase in (Phase.FAILED, Phase.ASLEEP)
    return deployments.retry(wish.name) if again else wish


def make_route(
    workspace: Workspace,
    ref: str,
    *,
    name: str,
    engine: str | None = None,
    options: dict[str, Any] | None = None,
    also: Sequence[str] = (),
    replicas: int = 1,
    idle_stop_s: float | None = None,
    weight: float = 1.0,
    price: dict[str, Any] | None = None,
) -> RouteWish:
    """One route to `ref`, checked as `make_wish` says, which has the errors, too."""
    _check_idle_stop(idle_stop_s)
    wanted = engine or workspace.settings.engine
    variants: list[Variant] = []
    if wanted != AUTO and not engine_class(wanted).formats:
        # An engine without weights (echo) answers for any reference.
        _check_options(options, [wanted])
        chosen = Variant(ref=str(Ref.parse(ref)), digest="", engine=wanted)
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
        engine = AUTO if several else variants[0].engine
        chosen = Variant(ref=_named(version), digest=version.digest, engine=engine)
        variants = variants if several else []
    return RouteWish(
        name=name,
        ref=chosen.ref,
        digest=chosen.digest,
        engine=chosen.engine,
        options=options or {},
        variants=tuple(variants),
        replicas=replicas,
        idle_stop_s=idle_stop_s,
        weight=weight,
        price=price,
    )


def _check_idle_stop(idle_stop_s: float | None) -> None:
    if idle_stop_s and not _SOONEST_S <= idle_stop_s <= _LATEST_S:
        raise DeployError(
            f"it is to fall asleep after {idle_stop_s:g} s",
            hint=f"It is 0 for never, or from {_SOONEST_S:g} to {_LATEST_S:g} seconds.",
            setting="idle_stop_s",
        )


def _check_options(options: dict[str, Any] | None, engines: Sequence[str]) -> None:
    """Refuse what no engine of the deployment takes, before it is written down: it may be a secret."""
    given = options or {}
    for key in given:
        prefix, dot, _ = key.rpartition(".")
        if dot and prefix not in engines:
            raise DeployError(
                "an option is for an engine that this deployment does not use",
                hint=f"It runs on {', '.join(engines)}.",
                setting="options",
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
