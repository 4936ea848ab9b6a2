"""Which files of a package, archive, folder or repository make the version, and which are left out and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from pressroom.kernel import SourceError, UnsafeWeightsError, did_you_mean
from pressroom.store import is_pickle_name

# What loads beside safetensors: configuration, tokenizer, chat template, licence. Never code.
_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"}


def chosen(names: Iterable[str], *, where: str, member: str | None) -> tuple[list[str], list[tuple[str, str]]]:
    """The names to take, and those left out with the reason.

    With `member` exactly that one. Else the one GGUF file; else the safetensors with the files beside them.

    Raises:
        SourceError: the member is not there, there are no weights, or there are several GGUF files to choose from.
        UnsafeWeightsError: the only weights are pickle.
    """
    listed = sorted(names)
    if member is not None:
        if member not in listed:
            raise SourceError(
                f"{where} has no file {member!r}",
                hint=did_you_mean(member, listed, otherwise=f"It has {_some(listed)}."),
                asked=member,
            )
        return [member], []
    pickles = [name for name in listed if is_pickle_name(name)]
    models = [name for name in listed if name.lower().endswith(".gguf")]
    if len(models) > 1:
        raise SourceError(
            f"{where} has {len(models)} GGUF files",
            hint=f"Choose one with '#' behind the source: {_some([f'#{name}' for name in models])}.",
            found=models,
        )
    if models:
        return models, _left_out(pickles)
    tensors = [name for name in listed if name.lower().endswith(".safetensors")]
    if tensors:
        folders = {str(PurePosixPath(name).parent) for name in tensors}
        if len(folders) > 1:
            raise SourceError(
                f"{where} has safetensors in several folders: {_some(sorted(folders))}",
                hint="Choose one file with '#' behind the source.",
                found=sorted(folders),
            )
        (folder,) = folders
        beside = [
            name
            for name in listed
            if str(PurePosixPath(name).parent) == folder and PurePosixPath(name).suffix.lower() in _COMPANIONS
        ]
        code = [name for name in listed if name.endswith(".py") and str(PurePosixPath(name).parent) == folder]
        return tensors + beside, _left_out(pickles) + [(name, "code is never taken") for name in code]
    if pickles:
        raise UnsafeWeightsError(
            f"the only weights in {where} are pickle ({_some(pickles)}), which runs code when it is read",
            hint="Ask the publisher for safetensors or GGUF, or convert it on a machine you can afford to lose.",
            found=pickles,
        )
    raise SourceError(
        f"{where} has no weights: no GGUF and no safetensors among {_some(listed) if listed else 'no files'}",
        hint="For a text or a data set choose one file with '#' behind the source, and add --data.",
        found=listed[:20],
    )


def relative(names: list[str]) -> dict[str, str]:
    """Each name with where it belongs in the version: below the folder that all share."""
    parents = {PurePosixPath(name).parent for name in names}
    base = parents.pop() if len(parents) == 1 else PurePosixPath()
    return {name: str(PurePosixPath(name).relative_to(base)) for name in names}


def _left_out(pickles: list[str]) -> list[tuple[str, str]]:
    return [(name, "pickle runs code when it is read") for name in pickles]


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
