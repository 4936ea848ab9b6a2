"""`hf:ORG/NAME[@REV]`: a model of the Hugging Face Hub, or of any server that speaks its API (`HF_ENDPOINT`)."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pressroom.kernel import Events, NetworkError, OfflineError, PressroomError, Progress, SourceError, StoreFullError
from pressroom.registry.sources._choosing import chosen
from pressroom.registry.sources._space import room_for
from pressroom.registry.sources.base import Fetched, Found, Order, Source, with_member

_SPEC = re.compile(r"((?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,199}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 30.0


class Backend(Source):
    """Models of the hub; a token comes from huggingface_hub's own places (`HF_TOKEN`, `hf auth login`)."""

    form = "hf:ORG/NAME[@REV]"

    def exact(self, spec: str, member: str | None) -> str | None:
        repository, revision = _parsed(spec)
        pinned = revision is not None and _COMMIT.fullmatch(revision)
        return with_member(f"hf:{repository}@{revision}", member) if pinned else None

    def fetch(self, order: Order) -> Fetched:
        repository, revision = _parsed(order.spec)
        if order.offline:
            raise OfflineError(
                f"hf:{order.spec} is not in this workspace, and `offline` is on",
                hint="Pull it once with offline = false, or give the path of the files.",
            )
        from huggingface_hub import HfApi

        # Read here: huggingface_hub reads it when it is first imported, which may have been for something else.
        api = HfApi(library_name="pressroom", endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None)
        with _said_plainly(order):
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
        siblings = {file.rfilename: file for file in info.siblings or []}
        # The list is judged before a byte is fetched: a repository that has only pickles costs no download.
        taken, left_out = chosen(siblings, where=f"hf:{repository}", member=order.member)
        commit = info.sha
        if not commit or not _COMMIT.fullmatch(commit):
            raise SourceError(
                f"the hub names no commit for hf:{order.spec}, so nothing says which files are meant",
                hint="Check `HF_ENDPOINT`.",
            )
        # One folder a commit: what an earlier run left of another one is of no use.
        folder = order.workdir / commit
        for left in order.workdir.iterdir():
            if left != folder:
                shutil.rmtree(left, ignore_errors=True)
        sizes = {name: siblings[name].size or 0 for name in taken}
        room_for(order.workdir, sum(sizes.values()), what=f"hf:{repository}")
        bar = _bar(f"downloading {repository}", sum(sizes.values()), order.events)
        files = []
        for name, path in taken.items():
            with _said_plainly(order):
                local = api.hf_hub_download(repository, name, revision=commit, local_dir=folder, tqdm_class=bar)
            lfs = siblings[name].lfs
            files.append(Found(path=path, local=Path(local), sha256=lfs.sha256 if lfs else None))
        return Fetched(
            name=Path(order.member).stem if order.member else repository.rpartition("/")[2],
            origin=with_member(f"hf:{repository}@{commit}", order.member),
            files=tuple(files),
            left_out=tuple(left_out),
        )


def _parsed(spec: str) -> tuple[str, str | None]:
    found = _SPEC.fullmatch(spec)
    # What huggingface_hub refuses to ask for.
    if found is None or ".." in spec or "--" in found[1] or found[1].endswith((".git", ".", "-")) or len(found[1]) > 96:
        raise SourceError(
            f"{spec!r} is not a model of the hub",
            hint="Write hf:ORG/NAME or hf:ORG/NAME@REVISION, for example hf:HuggingFaceTB/SmolLM2-135M-Instruct.",
            asked=spec,
        )
    return found[1], found[2]


def _bar(task: str, total: int, events: Events) -> Any:
    """A class that huggingface_hub takes for tqdm: it draws nothing, and says what has come of all files together."""
    came = 0

    class Bar:
        def __init__(self, *_args: object, **_options: object) -> None:
            self.n, self.total = 0, None

        def update(self, n: float | None = 1) -> None:
            nonlocal came
            came += int(n or 0)
            events.emit(Progress(task, came, total))

        def update_transfer(self, n: float) -> None:
            """What came over the line; what it makes up in the file is counted by `update`."""

        def _nothing(self, *_args: object, **_options: object) -> None: ...

        close = refresh = set_description = set_postfix_str = set_transfer_postfix_str = _nothing

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

    return Bar


@contextmanager
def _said_plainly(order: Order) -> Iterator[None]:
    """What huggingface_hub raises, as ours. Its messages may quote addresses and headers: none is passed on."""
    from huggingface_hub import errors

    asked = f"hf:{order.spec}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{asked} is gated", hint="Accept its terms on the hub, then set HF_TOKEN.", asked=asked
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no model {order.spec!r}, or does not show it to you",
            hint="Check the name; a private model needs HF_TOKEN.",
            asked=asked,
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"the hub has no such revision: {asked}", hint="Leave '@REV' out for the newest.", asked=asked
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(asked, error.response.status_code) from error
    except errors.OfflineModeIsEnabled as error:
        raise OfflineError(
            f"{asked} is not in this workspace, and HF_HUB_OFFLINE is set", hint="Unset it to pull from the hub."
        ) from error
    except (OSError, ValueError) as error:
        # OSError: the system, or one of huggingface_hub's own below it. ValueError: an answer that is not the hub's.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(
                f"no room for {asked} in {order.workdir}", hint="Make room, and run the same command again."
            ) from error
        raise _unreached(asked, error) from error
    except Exception as error:
        # huggingface_hub lets the errors of its HTTP library through; which library that is differs by its version.
        if isinstance(error, PressroomError) or not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise _unreached(asked, error) from error


def _refused(asked: str, status: int) -> SourceError:
    if status < 500 and status not in (408, 429):
        return SourceError(
            f"the hub answered {status} for {asked}",
            hint="Check the name and HF_TOKEN; `HF_ENDPOINT` chooses another hub.",
            asked=asked,
        )
    return NetworkError(
        f"the hub answered {status} for {asked}",
        hint="Try again later; `HF_ENDPOINT` chooses another hub.",
        asked=asked,
    )


def _unreached(asked: str, error: Exception) -> NetworkError:
    return NetworkError(
        f"the hub could not be read for {asked}: {type(error).__name__}",
        hint="Check the network and run the same command again; `HF_ENDPOINT` chooses another hub.",
        asked=asked,
    )
