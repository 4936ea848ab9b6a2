"""`hf:ORG/NAME[@REV]`: a model of the Hugging Face Hub, or of any server that speaks its API (`HF_ENDPOINT`)."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pressroom.kernel import NetworkError, OfflineError, PressroomError, SourceError, StoreFullError
from pressroom.registry.sources._address import Address
from pressroom.registry.sources._checks import Declared
from pressroom.registry.sources._choosing import chosen
from pressroom.registry.sources._downloads import Downloads
from pressroom.registry.sources._naming import without_credentials
from pressroom.registry.sources._space import room_for
from pressroom.registry.sources._wanted import Wanted
from pressroom.registry.sources.base import Fetched, Found, Order, Source, with_member

_SPEC = re.compile(r"((?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,199}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
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
        from huggingface_hub import HfApi, constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, not marked as such

        # Read here: huggingface_hub reads it when it is first imported, which may have been for something else.
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT
        api = HfApi(library_name="pressroom", endpoint=endpoint)
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
        files, wanted = [], []
        headers = build_hf_headers(library_name="pressroom")
        for number, (name, path) in enumerate(taken.items()):
            declared = _declared(siblings[name])
            blob = order.held(declared, path)
            # Its own name may be none of a file here.
            local = None if blob else folder / f"{number:05}"
            files.append(Found(path=path, local=local, blob=blob, sha256=declared.sha256, checked=True))
            if local is not None:
                address = _address(hf_hub_url(repository, name, revision=commit, endpoint=endpoint), endpoint, headers)
                wanted.append(Wanted(address=address, local=local, declared=declared))
        room_for(order.workdir, sum(one.declared.size or 0 for one in wanted), what=f"hf:{repository}")
        downloads = Downloads(
            wanted,
            task=repository,
            events=order.events,
            connections=order.connections,
            agent=headers.get("user-agent", "pressroom"),
        )
        try:
            downloads.run()
        except SourceError as error:
            raise _told(error, order) from error
        return Fetched(
            name=Path(order.member).stem if order.member else repository.rpartition("/")[2],
            origin=with_member(f"hf:{repository}@{commit}", order.member),
            files=tuple(files),
            left_out=tuple(left_out),
            fetched=downloads.fetched,
        )


def _parsed(spec: str) -> tuple[str, str | None]:
    found = _SPEC.fullmatch(spec)
    # What huggingface_hub refuses to ask for.
    if found is None or ".." in spec or "--" in found[1] or found[1].endswith((".git", ".", "-")) or len(found[1]) > 96:
        raise SourceError(
            f"{without_credentials(spec)!r} is not a model of the hub",
            hint="Write hf:ORG/NAME or hf:ORG/NAME@REVISION, for example hf:HuggingFaceTB/SmolLM2-135M-Instruct.",
            asked=without_credentials(spec),
        )
    return found[1], found[2]


def _declared(sibling: Any) -> Declared:
    """What the hub says of a file: SHA-256 of the large ones, of the others what git calls them."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    git = None if sha256 else sibling.blob_id
    return Declared(
        size=sibling.size if type(sibling.size) is int and sibling.size >= 0 else None,
        sha256=sha256 if sha256 and _SHA256.fullmatch(sha256) else None,
        git=git if git and _COMMIT.fullmatch(git) else None,
    )


def _address(url: str, endpoint: str, headers: dict[str, str]) -> Address:
    # A hub in one's own network may speak http: whoever set HF_ENDPOINT has decided so.
    return replace(Address.parse(url, plain=endpoint), authorization=headers.get("authorization"))


@contextmanager
def _said_plainly(order: Order) -> Iterator[None]:
    """What huggingface_hub raises, as ours. Its messages may quote addresses and headers: none is passed on."""
    from huggingface_hub import errors

    asked = f"hf:{order.spec}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise _gated(asked) from error
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


def _told(error: SourceError, order: Order) -> SourceError:
    """What a server of files said, as the hub's."""
    asked, status = f"hf:{order.spec}", error.facts.get("status")
    if type(error) is not SourceError or type(status) is not int:
        return error
    return _gated(asked) if error.facts.get("reason") == "GatedRepo" else _refused(asked, status)


def _gated(asked: str) -> SourceError:
    return SourceError(f"{asked} is gated", hint="Accept its terms on the hub, then set HF_TOKEN.", asked=asked)


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
