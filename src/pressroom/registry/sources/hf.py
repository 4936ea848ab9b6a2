"""`hf:ORG/NAME[@REV]`: a model of the Hugging Face Hub, or of any server that speaks its API (`HF_ENDPOINT`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pressroom.kernel import NetworkError, OfflineError, Progress, SourceError
from pressroom.registry.sources._choosing import chosen, relative
from pressroom.registry.sources._space import room_for
from pressroom.registry.sources.base import Fetched, Found, Order, Source

_SPEC = re.compile(r"((?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,199}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Backend(Source):
    """Models of the hub; a token comes from huggingface_hub's own places (`HF_TOKEN`, `hf auth login`)."""

    form = "hf:ORG/NAME[@REV]"

    def pinned(self, spec: str) -> bool:
        revision = _parsed(spec)[1]
        return revision is not None and _COMMIT.fullmatch(revision) is not None

    def fetch(self, order: Order) -> Fetched:
        repository, revision = _parsed(order.spec)
        if order.offline:
            raise OfflineError(
                f"hf:{order.spec} is not in this workspace, and `offline` is on",
                hint="Pull it once with offline = false, or give the path of the files.",
            )
        from huggingface_hub import HfApi

        api = HfApi(library_name="pressroom")
        with _said_plainly(order.spec):
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=30)
        siblings = {file.rfilename: file for file in info.siblings or []}
        # The list is judged before a byte is fetched: a repository that has only pickles costs no download.
        taken, left_out = chosen(siblings, where=f"hf:{repository}", member=order.member)
        sizes = {name: siblings[name].size or 0 for name in taken}
        total = sum(sizes.values())
        room_for(order.workdir, total, what=f"hf:{repository}")
        files, done = [], 0
        commit = info.sha or ""
        for name, path in relative(taken).items():
            order.events.emit(Progress(f"downloading {repository}", done, total))
            with _said_plainly(order.spec):
                # Into the working directory: huggingface_hub keeps what it needs to resume there, too.
                local = api.hf_hub_download(repository, name, revision=commit, local_dir=order.workdir / "files")
            declared = siblings[name].lfs
            sha256 = getattr(declared, "sha256", None) if declared else None
            files.append(Found(path=path, local=order.workdir / "files" / name, sha256=sha256))
            assert str(files[-1].local) == str(local)
            done += sizes[name]
        order.events.emit(Progress(f"downloading {repository}", total, total))
        member = f"#{order.member}" if order.member else ""
        return Fetched(
            name=repository.rpartition("/")[2],
            origin=f"hf:{repository}@{commit}{member}",
            files=tuple(files),
            left_out=tuple(left_out),
        )


def _parsed(spec: str) -> tuple[str, str | None]:
    found = _SPEC.fullmatch(spec)
    if found is None or ".." in spec:
        raise SourceError(
            f"{spec!r} is not a model of the hub",
            hint="Write hf:ORG/NAME or hf:ORG/NAME@REVISION, for example hf:HuggingFaceTB/SmolLM2-135M-Instruct.",
            asked=spec,
        )
    return found[1], found[2]


@contextmanager
def _said_plainly(spec: str) -> Iterator[None]:
    """What huggingface_hub raises, as ours. Its messages may quote headers, so only their first line is passed on."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(
            f"hf:{spec} is gated", hint="Accept its terms on the hub, then set HF_TOKEN.", asked=spec
        ) from error
    except (errors.RepositoryNotFoundError, errors.LocalTokenNotFoundError) as error:
        raise SourceError(
            f"the hub has no model {spec!r}, or does not show it to you",
            hint="Check the name; a private model needs HF_TOKEN.",
            asked=spec,
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"the hub has no such revision: hf:{spec}", hint="Leave '@REV' out for the newest.", asked=spec
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", "no status")
        raise NetworkError(
            f"the hub answered {status} for hf:{spec}", hint="Try again later; `HF_ENDPOINT` chooses another hub."
        ) from error
    except OSError as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(
            f"the hub did not answer for hf:{spec}: {said}",
            hint="Check the network; `HF_ENDPOINT` chooses another hub.",
        ) from error
    except Exception as error:
        if "http" not in type(error).__module__:
            raise
        raise NetworkError(
            f"the hub did not answer for hf:{spec}: {type(error).__name__}",
            hint="Check the network; `HF_ENDPOINT` chooses another hub.",
        ) from error
