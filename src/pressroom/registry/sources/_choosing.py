"""Which files of a package, archive, folder or repository make the version, and which are left out and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from pressroom.kernel import SourceError, UnsafeWeightsError, did_you_mean
from pressroom.registry.base import is_inner_path
from pressroom.registry.sources._naming import shown
from pressroom.store import is_pickle_name

# What loads beside safetensors: configuration, tokenizer, chat template, licence. Never code.
_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"}

# Names that a mistyped one is compared with: comparing takes long, and an archive may have a hundred thousand.
_MOST_COMPARED = 1000

LeftOut = list[tuple[str, str]]


def chosen(names: Iterable[str], *, where: str, member: str | None) -> tuple[dict[str, str], LeftOut]:
    """The names to take, each with its path in the version, and those left out with the reason.

    With `member` exactly that one. Else the one GGUF file; else the safetensors of the uppermost folder that has some,
    with the files beside them.

    Raises:
        SourceError: the member is not there, there are no weights, there are several to choose from, or a name to take
            is none that stays inside a folder.
        UnsafeWeightsError: the only weights are pickle.
    """
    listed = sorted(names)
    if member is not None:
        if member not in listed:
            raise SourceError(
                f"{where} has no file '{shown(member)}'",
                hint=did_you_mean(member, map(shown, listed[:_MOST_COMPARED]), otherwise=f"It has {_some(listed)}."),
                asked=member,
            )
        if is_pickle_name(member):
            raise _only_pickles(where, [member])
        return _placed([member], where), []
    pickles = [name for name in listed if is_pickle_name(name)]
    left_out = [(name, "pickle runs code when it is read") for name in pickles]
    models = [name for name in listed if name.lower().endswith(".gguf")]
    if len(models) > 1:
        raise SourceError(
            f"{where} has {len(models)} GGUF files",
            hint=f"Choose one with '#' behind the source: {_some(models, mark='#')}.",
            found=models,
        )
    if models:
        return _placed(models, where), left_out
    tensors = [name for name in listed if name.lower().endswith(".safetensors")]
    if tensors:
        folder = _uppermost(tensors, where)
        inside = [name for name in listed if _folder(name) == folder]
        taken = [name for name in inside if name in tensors or PurePosixPath(name).suffix.lower() in _COMPANIONS]
        left_out += [(name, "code is never taken") for name in inside if name.endswith(".py")]
        left_out += [(name, "it is of another model") for name in tensors if _folder(name) != folder]
        return _placed(taken, where), left_out
    if pickles:
        raise _only_pickles(where, pickles)
    raise SourceError(
        f"{where} has no weights: no GGUF and no safetensors among {_some(listed) if listed else 'no files'}",
        hint="For a text or a data set choose one file with '#' behind the source, and add --data.",
        found=listed[:20],
    )


def _uppermost(tensors: list[str], where: str) -> str:
    folders = sorted({_folder(name) for name in tensors}, key=_depth)
    if len(folders) > 1 and _depth(folders[0]) == _depth(folders[1]):
        raise SourceError(
            f"{where} has safetensors in several folders: {_some(folders)}",
            hint="Choose one file with '#' behind the source.",
            found=folders,
        )
    return folders[0]


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _depth(folder: str) -> int:
    return len(PurePosixPath(folder).parts)


def _placed(names: list[str], where: str) -> dict[str, str]:
    """All names are of one folder: in the version they lie side by side."""
    for name in names:
        if not is_inner_path(name):
            raise SourceError(
                f"{where} is refused: it names a file '{shown(name)}', which would lie outside of it",
                hint="An honest publisher names files that stay inside. Do not use this one.",
                found=name,
            )
    return {name: PurePosixPath(name).name for name in names}


def _only_pickles(where: str, pickles: list[str]) -> UnsafeWeightsError:
    return UnsafeWeightsError(
        f"what {where} has is pickle ({_some(pickles)}), which runs code when it is read",
        hint="Ask the publisher for safetensors or GGUF, or convert it on a machine you can afford to lose.",
        found=pickles,
    )


def _some(names: list[str], *, most: int = 6, mark: str = "") -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(mark + shown(name) for name in names[:most]) + more
