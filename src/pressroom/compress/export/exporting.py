"""A version carried over into the form of an engine and registered: what is written is read again before it counts."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.kernel import Note, Progress, RecipeError, RefError, Workspace, is_name
from pressroom.registry.base import Figure, Version

if TYPE_CHECKING:
    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.export._packed import Layer
    from pressroom.compress.export._same_tokens import Agreement
    from pressroom.compress.export._schemes import Scheme
    from pressroom.compress.weights import Weights

#: The engines that a version can be exported for.
TARGETS = ("llamacpp", "transformers", "vllm")

_FOLDER = "compress"
_WORK = "export-"
#: The tag that says what a version was exported for.
TAG = "export"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A version in the form of an engine. `scheme` is what its layers were rounded to ('': not), `layers` what became
    of each; `tokens_checked`: llama.cpp and the written tokenizer were seen to agree."""

    version: Version
    target: str
    scheme: str
    layers: tuple[Layer, ...]
    tokens_checked: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ref": f"{self.version.name}:{self.version.number}",
            "digest": self.version.digest,
            "bytes": self.version.size,
            "target": self.target,
            "scheme": self.scheme,
            "tokens_checked": self.tokens_checked,
            "seconds": round(self.seconds, 1),
            "layers": [
                {"name": one.name, "error": one.error, "nearest": one.nearest, "fallback": one.fallback}
                for one in self.layers
            ],
        }


def check_export(
    workspace: Workspace,
    version: Version,
    *,
    target: str,
    scheme: str = "",
    dtype: str = "bf16",
    input_scales: Mapping[str, float] | None = None,
) -> str:
    """Say in seconds what cannot be done; returns the scheme in full ('' where weights are only carried over).

    Raises:
        RecipeError: the version, its architecture, its tokenizer or its shapes do not fit; all of it named.
        MissingDependencyError: a library is missing that is needed for it.
    """
    _check_asked(version, target, scheme)
    if version.format == "safetensors":
        from pressroom.compress.export._from_folder import gguf_plan

        with _folder(workspace, version) as folder:
            _, tensors = gguf_plan(folder)
        if target == "llamacpp":
            return ""
        from pressroom.compress.export._schemes import check_multiples, scheme_of

        linears = [one for one in tensors if one.name.startswith("blk.") and len(one.shape) == 2]
        found = scheme_of(scheme, linears)
        check_multiples(found, linears)
        return found.name
    with _weights(workspace, version) as source:
        return _planned(source, target, scheme, dtype, input_scales)


def export(
    workspace: Workspace,
    version: Version,
    *,
    target: str,
    name: str,
    scheme: str = "",
    dtype: str = "bf16",
    text: str = "",
    tokens: int = 16_384,
    input_scales: Mapping[str, float] | None = None,
) -> Exported:
    """Write the version for `target` and register it as `name`, with its parent.

    "llamacpp": a GGUF file of a folder of safetensors, in the types its weights have. "transformers": a folder of
    safetensors in `dtype` (bf16, f16, f32) of a GGUF file. "vllm": the same, its linear layers rounded to `scheme`
    where one is named, second-order where there is a calibration `text` (of which `tokens` tokens are looked at), else
    each weight by itself; `input_scales` are for the scheme w8a8-static, by the names of the GGUF file's layers
    (None: they are measured on the text).

    The kind is `quantised` where layers were rounded, else that of the version. Says how far it is as Progress events.

    Raises:
        RecipeError: see `check_export`; or llama.cpp and the written tokenizer do not agree.
        RefError: the name cannot be one. StoreFullError: there is no room. Nothing is registered or left in any case.
        MissingDependencyError, EngineError: a library is missing, or llama.cpp does not take the tokenizer.
    """
    began = time.monotonic()
    _check_asked(version, target, scheme)
    if not is_name(name):
        raise RefError(
            f"{name!r} cannot name a version",
            hint="Names use letters, digits, '.', '_' and '-', and start with a letter or a digit.",
            asked=name,
        )
    called = f"{version.name}:{version.number}"
    with workspace.lock("compress", purpose=f"export {called}", wait_s=None), _work(workspace) as work:
        job = _Job(workspace, version, work, name.replace("/", "-"))
        layers: list[Layer] = []
        full = ""
        if target == "llamacpp":
            written, agreed = job.to_gguf()
        else:
            written, agreed, layers, full = job.to_folder(target, scheme, dtype, text, tokens, input_scales)
        made = _registered(workspace, version, written, name=name, target=target, scheme=full)
    if agreed.note:
        workspace.events.emit(Note(agreed.note))
    made = _with_figures(workspace, made, layers)
    return Exported(
        version=made,
        target=target,
        scheme=full,
        layers=tuple(layers),
        tokens_checked=agreed.asked,
        seconds=time.monotonic() - began,
    )


def as_gguf(workspace: Workspace, version: Version) -> Version:
    """The version itself where it is GGUF; else the GGUF version made of it, which is made where there is none.

    Raises: as `export`.
    """
    from pressroom.registry import Registry

    if version.format == "gguf":
        return version
    registry = Registry(workspace)
    for each in registry.list():
        if each.parent == version.digest and each.tags.get(TAG) == "llamacpp" and registry.holds(each):
            return each
    return export(workspace, version, target="llamacpp", name=f"{version.name}-gguf").version


class _Job:
    """What is written, in a folder that is removed when all is registered."""

    def __init__(self, workspace: Workspace, version: Version, work: Path, name: str) -> None:
        self._workspace, self._version, self._work, self._name = workspace, version, work, name

    def to_gguf(self) -> tuple[Path, Agreement]:
        """A GGUF file of a folder, and whether its tokenizer agrees."""
        from pressroom.compress.export._from_folder import write_from_folder
        from pressroom.compress.export._same_tokens import check_same
        from pressroom.compress.export._vocabulary import loaded

        target = self._work / f"{self._name}.gguf"
        with _folder(self._workspace, self._version) as folder:
            keys = write_from_folder(folder, target, progress=self._progress("converting"))
            return target, check_same(keys, loaded(folder)[0])

    def to_folder(
        self,
        target: str,
        scheme: str,
        dtype: str,
        text: str,
        tokens: int,
        input_scales: Mapping[str, float] | None,
    ) -> tuple[Path, Agreement, list[Layer], str]:
        """A folder of safetensors, whether its tokenizer agrees, its layers and the scheme in full."""
        from pressroom.compress.export._folder import write_folder
        from pressroom.compress.export._packed import planned, write_packed
        from pressroom.compress.weights import open_weights

        path = None
        if self._version.format == "safetensors":
            path = self.to_gguf()[0]
        folder = self._work / self._name
        folder.mkdir()
        layers: list[Layer] = []
        with open_weights(path) if path else _weights(self._workspace, self._version) as source:
            full = _planned(source, target, scheme, dtype, input_scales)
            agreed = self._tokens_agree(source)
            progress = self._progress("exporting")
            if full:
                plan: Scheme = planned(source, full, dtype=dtype, input_scales=input_scales)
                if plan.activations == "static" and input_scales is None:
                    input_scales = self._static(source, text, tokens)
                calibration = self._calibrated(source, text, tokens) if text.strip() else None
                layers = write_packed(
                    source, folder, plan, dtype=dtype, calibration=calibration, input_scales=input_scales,
                    progress=progress,
                )  # fmt: skip
            else:
                write_folder(source, folder, dtype=dtype, progress=progress)
        return folder, agreed, layers, full

    def _tokens_agree(self, source: Weights) -> Agreement:
        from pressroom.compress.export._same_tokens import check_same
        from pressroom.compress.export._tokenizer_files import tokenizer_of

        keys = {key: source.value(key) for key in source.keys if key.startswith("tokenizer.")}
        return check_same(keys, tokenizer_of(source.value))

    def _static(self, source: Weights, text: str, tokens: int) -> dict[str, float]:
        from pressroom.compress.export._static import static_scales

        if not text.strip():
            raise RecipeError(
                "static activations need a calibration text, or a scale for every layer, and there is neither",
                hint="Name a text, or take w8a8, which scales each token by itself.",
            )
        emit = self._workspace.events.emit
        return static_scales(
            source,
            text,
            tokens=tokens,
            on_progress=lambda done, total: emit(Progress("looking at inputs", done, total, "windows")),
        )

    def _calibrated(self, source: Weights, text: str, tokens: int) -> Calibration:
        from pressroom.compress.calibrate import calibrate

        workspace = self._workspace
        same = self._version.format == "gguf"
        return calibrate(
            source.path,
            text,
            tokens=tokens,
            folder=workspace.path(_FOLDER),
            threads=workspace.settings.engines.threads,
            model_digest=self._version.digest if same else "",
            on_progress=lambda done, total: workspace.events.emit(Progress("calibrating", done, total, "windows")),
            on_warning=lambda warning: workspace.events.emit(Note(warning)),
        )

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._workspace.events.emit(Progress(what, done, total, "B"))


def _check_asked(version: Version, target: str, scheme: str) -> None:
    if target not in TARGETS:
        raise RecipeError(f"there is no target {target!r}", hint=f"Take one of {', '.join(TARGETS)}.", asked=target)
    if scheme and target != "vllm":
        raise RecipeError(
            f"the scheme {scheme!r} is for vLLM, and the target is {target}",
            hint="Formats of GGUF files are chosen with --to." if target == "llamacpp" else "Take --target vllm.",
        )
    called = f"{version.name}:{version.number}"
    if version.format not in ("gguf", "safetensors") or version.kind == "adapter":
        found = "an adapter" if version.kind == "adapter" else f"of the format {version.format or 'unknown'!r}"
        raise RecipeError(
            f"{called} is {found}, and only GGUF and safetensors weights can be compressed or exported",
            hint="Take a version of such weights; an adapter is merged into its base first.",
            ref=str(version.ref),
        )
    already = (version.format == "gguf" and target == "llamacpp") or (
        version.format == "safetensors" and target != "llamacpp" and not scheme
    )
    if already:
        raise RecipeError(
            f"{called} is {version.format} already, which is what {target} loads",
            hint="Compress it, or take another target." if target == "llamacpp" else "Name a scheme for vLLM.",
        )


def _planned(source: Weights, target: str, scheme: str, dtype: str, input_scales: Mapping[str, float] | None) -> str:
    from pressroom.compress.export._folder import config_of
    from pressroom.compress.export._packed import planned

    if target == "vllm" and scheme:
        return planned(source, scheme, dtype=dtype, input_scales=input_scales).name
    config_of(source, dtype)
    return ""


def _weights(workspace: Workspace, version: Version) -> Weights:
    from pressroom.compress.weights import open_weights
    from pressroom.registry import Registry

    return open_weights(Registry(workspace).materialise(version), called=f"{version.name}:{version.number}")


def _folder(workspace: Workspace, version: Version) -> Any:
    from pressroom.compress.export._safetensors import Folder
    from pressroom.registry import Registry

    path = Registry(workspace).materialise(version)
    if not path.is_dir():
        raise RecipeError(
            f"{version.name}:{version.number} is one file of safetensors, without config.json and tokenizer",
            hint="Pull the folder that it lies in.",
        )
    return Folder(path, called=f"{version.name}:{version.number}")


@contextmanager
def _work(workspace: Workspace) -> Iterator[Path]:
    """A folder for what is written, gone at the end; what killed ones left is removed."""
    parent = workspace.path(_FOLDER)
    for left in parent.glob(f"{_WORK}*"):
        shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=_WORK, dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _registered(
    workspace: Workspace, version: Version, written: Path, *, name: str, target: str, scheme: str
) -> Version:
    from pressroom.registry import pull

    return pull(
        workspace,
        str(written),
        name=name,
        kind="quantised" if scheme else version.kind,
        parent=str(version.ref),
        tags={TAG: target, **({"scheme": scheme} if scheme else {})},
    )


def _with_figures(workspace: Workspace, made: Version, layers: list[Layer]) -> Version:
    from pressroom.registry import Registry

    known = [one.error for one in layers if one.error is not None]
    registry = Registry(workspace)
    if known:
        figure = Figure(
            name="layer_error",
            value=round(sum(known) / len(known), 8),
            how=f"mean over {len(known)} linear layers of the share of their output, squared, that is lost on the "
            "calibration text",
            at=time.time(),
        )
        registry.add_figures(made.ref, [figure])
    return registry.get(made.ref)
