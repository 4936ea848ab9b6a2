"""Fill the sheet of a version, keeping each figure as soon as it is known, so that an interrupted run goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pressroom.kernel import CapabilityError, Ref, Workspace
from pressroom.registry.base import Version

if TYPE_CHECKING:
    from pressroom.registry import Registry


def fill_sheet(workspace: Workspace, ref: Ref | str, *, again: bool = False, windows: int | None = None) -> Version:
    """Measure what the sheet lacks (all of it with `again`) and return the version with its sheet.

    The text that perplexity is measured on is pulled as data first, so that the figure names it by digest.
    """
    from pressroom.engines import measure
    from pressroom.registry import Registry, pull, read_text

    settings = workspace.settings
    registry = Registry(workspace)
    version = registry.get(ref)
    if version.kind == "data":
        raise CapabilityError(
            f"{version.name}:{version.number} is data, and only weights are measured",
            hint="`press list` shows which versions are weights.",
            ref=str(version.ref),
        )
    # One measurement at a time: two would slow each other and both be wrong.
    with workspace.lock("measure", purpose=f"measure {version.name}:{version.number}", wait_s=None):
        version = registry.get(version.ref)
        known = set() if again else {figure.name for figure in version.sheet}
        text = pull(workspace, settings.measure.text, as_data=True)
        config = settings.measure if windows is None else dataclasses.replace(settings.measure, windows=windows)
        for figure in measure(
            workspace,
            version,
            model=registry.materialise(version),
            engine=_engine(workspace, version),
            text=read_text(workspace, text),
            text_ref=text.ref,
            config=config,
            known=known,
            parent=None if "kl_mean" in known else _parent(registry, version),
        ):
            registry.add_figures(version.ref, [figure])
    return registry.get(version.ref)


def _engine(workspace: Workspace, version: Version) -> str:
    """The engine that the sheet is about: the setting's, or the one for these weights."""
    from pressroom.engines import engines_for

    if workspace.settings.engine != "auto":
        return workspace.settings.engine
    return next(iter(engines_for(workspace, version.format)), "llamacpp")


def _parent(registry: Registry, version: Version) -> tuple[Path, str] | None:
    """The weights of the parent and its name, where the divergence from it can be measured."""
    if version.parent is None or version.format != "gguf":
        return None
    named = [each for each in registry.list() if each.digest == version.parent]
    if not named or named[0].format != "gguf" or not registry.holds(named[0]):
        return None
    return registry.materialise(named[0]), f"{named[0].name}:{named[0].number}"
