"""The figures of a version's sheet: what its header says, its perplexity, and how fast and large it runs here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from pressroom.engines._load import create, engine_class
from pressroom.engines._perplexity import perplexity
from pressroom.engines._speed import Speed, speed
from pressroom.engines.base import Engine, EngineSpec
from pressroom.kernel import MeasureSettings, Note, Progress, Ref, Workspace, this_machine
from pressroom.registry.base import Figure, Version

_CLIENTS = (1, 4)
# Runs a figure is the median of. On a shared machine a single one can be off by a tenth.
_ROUNDS = 3
_WARM_UP_TOKENS = 8
# Figures of a version beside its parent: unit, and what it is.
_DIVERGENCE = {
    "kl_mean": ("nat", "D(parent ‖ model) of the next token, mean"),
    "kl_stderr": ("nat", "standard error of kl_mean, by windows"),
    "kl_p99": ("nat", "D(parent ‖ model) of the next token, 99th percentile"),
    "top1_agreement": ("", "share where parent and model hold the same token for the likeliest"),
    "top1_stderr": ("", "standard error of top1_agreement, by windows"),
}


def measure(
    workspace: Workspace,
    version: Version,
    *,
    model: Path,
    engine: str,
    text: str,
    text_ref: Ref,
    config: MeasureSettings,
    known: Collection[str] = (),
    parent: tuple[Path, str] | None = None,
) -> Iterator[Figure]:
    """Measure what the sheet of `version` lacks, cheapest first, giving each figure as soon as it is there.

    `model` is the file of its weights, `engine` what runs it, `text` with the reference `text_ref` is what perplexity
    is measured on, and `known` names the figures that need no measuring. `parent` is the file of the parent's weights
    and what it is called, where the divergence from it is to be measured. Says how far it is as Progress events, and
    as a Note what cannot be measured.

    Raises:
        EngineError: the engine does not start, dies, or gives no numbers.
    """
    for figure in _header_figures(version):
        if figure.name not in known:
            yield figure
    machine = str(this_machine())
    wanted = {"perplexity", "perplexity_stderr"} - set(known)
    if parent is not None:
        wanted |= set(_DIVERGENCE) - set(known)
    if wanted:
        if version.format != "gguf":
            workspace.events.emit(Note("perplexity is not measured: only GGUF weights can be scored so far"))
        else:
            for figure in _perplexity_figures(workspace, model, text, text_ref, config, machine, parent):
                if figure.name in wanted:
                    yield figure
    wanted = {"ttft_ms", "peak_memory_bytes", *(f"tokens_per_second_{n}" for n in _CLIENTS)} - set(known)
    kind = engine_class(engine)
    found = version.format
    if wanted and kind.elsewhere:
        workspace.events.emit(Note("speed and memory are not measured: it runs at a vendor, where asking costs"))
    elif wanted and kind.formats and found not in kind.formats:
        loads = ", ".join(kind.formats)
        workspace.events.emit(Note(f"speed and memory are not measured: {engine} loads {loads}, and this is {found}"))
    elif wanted:
        for figure in _running_figures(workspace, version, model, engine, config, machine, wanted):
            if figure.name in wanted:
                yield figure


def _header_figures(version: Version) -> Iterator[Figure]:
    now = time.time()
    yield Figure(name="bytes", value=version.size, unit="B", how="size of its files", at=now)
    says = "read from the header of the weights"
    for name, unit in (("parameters", ""), ("architecture", ""), ("tokenizer", ""), ("context_length", "tokens")):
        value = version.metadata.get(name)
        if value is not None:
            yield Figure(name=name, value=value, unit=unit, how=says, at=now)
    parameters = version.metadata.get("parameters")
    if parameters:
        yield Figure(
            name="bits_per_weight",
            value=round(version.size * 8 / int(parameters), 3),
            unit="bit",
            how="8 × bytes / parameters, header and tokenizer included",
            at=now,
        )


def _perplexity_figures(
    workspace: Workspace,
    model: Path,
    text: str,
    text_ref: Ref,
    config: MeasureSettings,
    machine: str,
    parent: tuple[Path, str] | None,
) -> Iterator[Figure]:
    def progress(done: int, total: int) -> None:
        workspace.events.emit(Progress("measuring perplexity", done, total, "windows"))

    progress(0, config.windows)
    reference, called = parent or (None, "")
    found = perplexity(
        model,
        text,
        windows=config.windows,
        threads=workspace.settings.engines.threads,
        reference=reference,
        on_progress=progress,
    )
    how = f"{found.how}, of {text_ref}"
    where = f"{machine}; {found.version}"
    now = time.time()
    yield Figure(name="perplexity", value=round(found.value, 4), how=how, where=where, at=now)
    yield Figure(name="perplexity_stderr", value=round(found.stderr, 4), how=how, where=where, at=now)
    if found.unlike:
        workspace.events.emit(Note(f"the divergence from {called} is not measured: {found.unlike}"))
    if found.kl is not None:
        values = (found.kl, found.kl_stderr, found.kl_p99, found.top1, found.top1_stderr)
        for (name, (unit, what)), value in zip(_DIVERGENCE.items(), values, strict=True):
            if value is not None:
                said = f"{what}, over the places of: {how}; the parent is {called}"
                yield Figure(name=name, value=round(value, 6), unit=unit, how=said, where=where, at=now)


def _running_figures(
    workspace: Workspace,
    version: Version,
    model: Path,
    engine: str,
    config: MeasureSettings,
    machine: str,
    wanted: Collection[str],
) -> Iterator[Figure]:
    settings = workspace.settings.engines
    spec = EngineSpec(
        name=version.name,
        model=model if engine_class(engine).formats else None,
        context=settings.context,
        slots=settings.slots or engine_class(engine).default_slots,
        threads=settings.threads,
        start_timeout_s=settings.start_timeout_s,
        stop_timeout_s=settings.stop_timeout_s,
    )
    runs = [n for n in _CLIENTS if f"tokens_per_second_{n}" in wanted]
    if "ttft_ms" in wanted and 1 not in runs:
        runs.insert(0, 1)
    if not runs:  # the most memory is only needed when the engine works
        runs = [max(_CLIENTS)]
    task, steps = "measuring speed", len(runs) * _ROUNDS
    workspace.events.emit(Progress(task, 0, steps, "runs"))
    running = create(engine, spec)
    try:
        endpoint = running.start()
        where = f"{machine}; {engine} ({endpoint.version})"
        sizes = f"{spec.slots} slots of {endpoint.context or 'an unknown number of'} tokens"
        speed(endpoint, clients=1, tokens=_WARM_UP_TOKENS, model=spec.name)
        for index, clients in enumerate(runs):
            rounds = []
            for number in range(_ROUNDS):
                rounds.append(speed(endpoint, clients=clients, tokens=config.tokens, model=spec.name))
                workspace.events.emit(Progress(task, index * _ROUNDS + number + 1, steps, "runs"))
            yield from _speed_figures(rounds, clients, config.tokens, f"{where}, {sizes}")
        yield _peak(running, runs, f"{where}, {sizes}")
    finally:
        running.stop()


def _speed_figures(rounds: list[Speed], clients: int, tokens: int, where: str) -> Iterator[Figure]:
    now = time.time()
    asked = f"prompts of about {rounds[0].prompt_tokens} tokens, all different, the engine's own HTTP"
    yield Figure(
        name=f"tokens_per_second_{clients}",
        value=round(statistics.median(one.tokens_per_second for one in rounds), 2),
        unit="tokens/s",
        how=f"median of {len(rounds)} runs: {clients} at once, each streaming {tokens} tokens greedily, from the first "
        f"request to the last token; {asked}",
        where=where,
        at=now,
    )
    if clients == 1:
        yield Figure(
            name="ttft_ms",
            value=round(1000 * statistics.median(one.ttft_s for one in rounds), 2),
            unit="ms",
            how=f"median of {len(rounds)} requests, one at a time, from request to first token; {asked}",
            where=where,
            at=now,
        )


def _peak(running: Engine, runs: list[int], where: str) -> Figure:
    return Figure(
        name="peak_memory_bytes",
        value=running.health().peak_memory_bytes,
        unit="B",
        how=f"most resident memory of the engine's process, after answering {max(runs)} at once; "
        "the mapped weights count",
        where=where,
        at=time.time(),
    )
