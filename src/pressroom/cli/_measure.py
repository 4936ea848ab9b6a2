"""Fill the sheet of a version, keeping each figure as soon as it is known, so that an interrupted run goes on."""

from __future__ import annotations

import dataclasses

from pressroom.kernel import CapabilityError, Ref, Workspace
from pressroom.registry.base import Version


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
            engine=settings.engine,
            text=read_text(workspace, text),
            text_ref=text.ref,
            config=config,
            known=known,
        ):
            registry.add_figures(version.ref, [figure])
    return registry.get(version.ref)
