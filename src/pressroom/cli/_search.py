"""The search of `press compress` with what only the command has: engines to measure files in, and runs on record."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.kernel import MissingDependencyError, Note, Progress, Workspace

if TYPE_CHECKING:
    from pressroom.compress import CalibrationText
    from pressroom.compress.search import Clock, Goal, Measure, Outcome, Tools, Tried
    from pressroom.engines import Beside
    from pressroom.registry import Registry
    from pressroom.registry.base import Version
    from pressroom.track import Tracker

# Windows of 512 tokens that a probe is looked at, and a file that may be the one. They come after the tokens that were
# calibrated on, so that nothing is chosen by what it was fitted to.
_GLANCE = 2
_LOOK = 8
_CLOCK_TOKENS = 64
_CLOCK_RUNS = 3


def search(
    workspace: Workspace,
    registry: Registry,
    version: Version,
    goal: Goal,
    *,
    calibration: CalibrationText,
    text: str,
    text_digest: str,
    runs: dict[int, str],
) -> AbstractContextManager[Outcome]:
    """Search for the best file within the goal; see `compress.search.searched`. `runs` gets the tracked runs' ids by
    the numbers of the files that were tried."""
    from pressroom.compress.search import searched

    model = registry.materialise(version)
    return searched(
        workspace,
        version,
        model,
        goal,
        calibration=calibration,
        text=text,
        text_digest=text_digest,
        tools=lambda: tools(workspace, version, model, goal, text=text, skip=calibration.tokens, runs=runs),
    )


@contextmanager
def tools(
    workspace: Workspace, version: Version, model: Path, goal: Goal, *, text: str, skip: int, runs: dict[int, str]
) -> Iterator[Tools]:
    """What a search for the goal is done with. Every file that is measured becomes a tracked run."""
    from pressroom.compress.search import Tools

    def progress(what: str, done: int, total: int, unit: str) -> None:
        workspace.events.emit(Progress(what, done, total, unit))

    from pressroom.engines import Beside

    threads = workspace.settings.engines.threads
    with (
        Beside(model, text, windows=_LOOK, skip=skip, threads=threads, folder=workspace.path("tmp")) as beside,
        _record(workspace, version, goal, runs) as record,
    ):
        yield Tools(
            measure=_measure(beside, model, _LOOK),
            glance=_measure(beside, model, _GLANCE),
            clock=_clock(workspace, version) if goal.unit == "ms" else None,
            on_progress=progress,
            on_tried=record,
        )


def _measure(beside: Beside, model: Path, windows: int) -> Measure:
    from pressroom.compress.search import Score
    from pressroom.kernel import EngineError

    own: list[float] = []

    def measure(path: Path) -> Score:
        if not own:
            own.append(beside.measure(model, windows=windows).value)
        found = beside.measure(path, windows=windows)
        if found.kl is None:
            raise EngineError(f"a file of the search cannot be compared with what it was made of: {found.unlike}")
        return Score(
            kl=found.kl,
            kl_stderr=found.kl_stderr,
            perplexity=found.value,
            reference=own[0],
            kl_of_windows=found.kl_of_windows,
        )

    return measure


def _clock(workspace: Workspace, version: Version) -> Clock:
    from pressroom.engines import EngineSpec, create, speed

    settings = workspace.settings.engines

    def clock(path: Path) -> float:
        spec = EngineSpec(
            name=version.name,
            model=path,
            context=settings.context,
            slots=1,
            threads=settings.threads,
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
        )
        engine = create("llamacpp", spec)
        try:
            endpoint = engine.start()
            speed(endpoint, clients=1, tokens=8, model=spec.name)
            runs = [speed(endpoint, clients=1, tokens=_CLOCK_TOKENS, model=spec.name) for _ in range(_CLOCK_RUNS)]
        finally:
            engine.stop()
        return statistics.median(1000 / one.tokens_per_second for one in runs)

    return clock


@contextmanager
def _record(workspace: Workspace, version: Version, goal: Goal, runs: dict[int, str]) -> Iterator[Any]:
    """What keeps each file that was tried as a tracked run; where MLflow is not installed, that is said once."""
    from pressroom.track import open_tracker

    try:
        opened = open_tracker(workspace)
    except MissingDependencyError as error:
        workspace.events.emit(Note(f"the files that are tried are not kept as runs: {error.hint}"))
        yield lambda _: None
        return
    with opened as tracker:

        def record(tried: Tried) -> None:
            runs[tried.number] = _keep(tracker, version, goal, tried)

        yield record


def link(workspace: Workspace, run: str, version: Version) -> None:
    """Say of the run of the file that was taken which version it became."""
    from pressroom.track import open_tracker

    with open_tracker(workspace) as tracker:
        tracker.link(run, str(version.ref))


def _keep(tracker: Tracker, version: Version, goal: Goal, tried: Tried) -> str:
    params = {"goal": str(goal), "why": tried.why, "number": tried.number}
    with tracker.start(
        f"{version.name} within {goal} #{tried.number}",
        experiment="compress",
        params=params,
        config={"formats": dict(tried.formats)},
        started_from=str(version.ref),
    ) as run:
        found = {
            "bytes": float(tried.size),
            "kl_mean": tried.score.kl,
            "perplexity": tried.score.perplexity,
            "loss": tried.score.loss,
            "predicted_kl": tried.predicted,
        }
        if tried.ms is not None:
            found["ms_per_token"] = tried.ms
        run.log_metrics(found)
    return run.id
