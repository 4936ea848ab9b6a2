"""The hub: which request means what. The paths are those of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs, unquote

from pressroom.kernel import Keys, PressroomError, Workspace
from pressroom.registry.hub._access import Access
from pressroom.registry.hub._bodies import Gathered
from pressroom.registry.hub._calls import Call, Found
from pressroom.registry.hub._files import Files
from pressroom.registry.hub._reading import Reading
from pressroom.registry.hub._refusals import bad_request, refusal, repo_not_found
from pressroom.registry.hub._repositories import Repositories, name_of
from pressroom.registry.hub._writing import LFS, Writing, validated
from pressroom.registry.hub.base import Answer, HubError, HubRequest, HubService, Later, Sink
from pressroom.registry.registry import Registry

_MOST_FIELDS = 4_000
_MOST_PATH = 8_192
_OTHERS = ("datasets", "spaces", "kernels")
_NO_OTHERS = "This hub has models; there are no datasets and spaces."
_HINT = "docs/hub.md says what this hub answers."
_BATCH = ("info", "lfs", "objects", "batch")
_VERIFY = ("info", "lfs", "verify")
# What may stand behind a repository's id in the API: with it, the id `a` and the verb `tree` are told from `a/tree`.
_VERBS = frozenset(
    (
        *("branch", "commit", "commits", "discussions", "lfs-files", "like", "likers", "paths-info", "preupload"),
        *("refs", "revision", "settings", "super-squash", "tag", "tree", "xet-read-token", "xet-write-token"),
    )
)


class Hub(HubService):
    """The hub of one workspace. Thread-safe."""

    def __init__(self, workspace: Workspace) -> None:
        registry = Registry(workspace)
        repositories = Repositories(workspace, registry)
        files = Files(workspace, registry)
        self._access = Access(Keys(workspace), require_key=workspace.settings.hub.require_key)
        self._reading = reading = Reading(registry, repositories, files)
        self._writing = writing = Writing(workspace, registry, repositories, files)
        self._of_a_model: dict[tuple[str, str], Callable[[Call], Found]] = {
            ("GET", ""): reading.info,
            ("GET", "revision"): reading.info,
            ("GET", "tree"): reading.tree,
            ("GET", "refs"): reading.refs,
            ("GET", "commits"): reading.commits,
            ("GET", "discussions"): reading.discussions,
            ("POST", "paths-info"): reading.paths_info,
            ("POST", "preupload"): writing.preupload,
            ("POST", "commit"): writing.commit,
            ("GET", "xet-write-token"): writing.xet_token,
        }

    def begin(self, request: HubRequest) -> Answer | Sink | Later:
        if len(request.path) > _MOST_PATH:
            raise bad_request("the path of the request is too long")
        segments = tuple(unquote(part, errors="replace") for part in request.path.split("/")[1:])
        try:
            query = parse_qs(request.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError as error:
            raise bad_request("the query of the request has too many fields") from error
        if segments[:2] == ("api", "uploads"):  # the address itself is the right
            return self._writing.upload(request, segments[2:], query)
        if segments[:2] == ("api", "xet"):  # it has a token of its own
            return self._writing.xet.call(request, segments[2:])
        call = Call(request, self._access.who(request), query)
        return self._api(call, segments[1:]) if segments[0] == "api" else self._file(call, segments)

    def refusal(self, error: PressroomError) -> Answer:
        return refusal(error)

    def close(self) -> None:
        self._writing.close()

    def _api(self, call: Call, segments: tuple[str, ...]) -> Found:
        """What is asked below /api."""
        method = "GET" if call.request.method == "HEAD" else call.request.method
        match (method, *segments):
            case ("GET", "whoami-v2"):
                return self._reading.whoami(call)
            case ("POST", "validate-yaml"):
                return Gathered(validated)
            case ("POST", "repos", "create"):
                return Gathered(lambda body: self._writing.create(call, body))
            case ("DELETE", "repos", "delete"):
                return Gathered(lambda body: self._writing.delete(call, body))
            case ("GET", "models"):
                return self._reading.models(call)
            case (_, "models", *rest) if rest and rest[0]:
                asked, behind = _repo_id(rest)
                found = call.about(asked, name_of(asked), tuple(behind[1:]))
                handler = self._of_a_model.get((method, behind[0] if behind else ""))
                if handler is not None:
                    found.who.read(found.name)
                    return handler(found)
            case ("GET", kind, *rest) if kind in _OTHERS and rest:
                raise repo_not_found("/".join(rest[:2]), _NO_OTHERS)
        raise HubError(404, f"this hub has no {call.request.method} {call.request.path[:200]}", hint=_HINT)

    def _file(self, call: Call, segments: tuple[str, ...]) -> Found:
        """What is asked below the id of a model: its files, and the ways of Git LFS."""
        if call.request.method == "POST":
            for behind, handler in ((_BATCH, self._writing.batch), (_VERIFY, self._writing.verify)):
                asked = "/".join(segments[: -len(behind)])
                if segments[-len(behind) :] == behind and asked.endswith(LFS):
                    asked = asked.removesuffix(LFS)
                    return handler(call.about(asked, name_of(asked)))
        if segments[0] in _OTHERS:
            raise repo_not_found("/".join(segments[1:3]), _NO_OTHERS)
        for length in (1, 2):
            if len(segments) > length + 2 and segments[length] in ("resolve", "raw"):
                asked = "/".join(segments[:length])
                found = call.about(asked, name_of(asked), segments[length + 1 :])
                found.who.read(found.name)
                return self._reading.resolve(found)
        if call.request.method in ("GET", "HEAD"):
            page = _page(segments)
            if page is not None:
                asked, revision = page
                found = call.about(asked, name_of(asked), revision)
                found.who.read(found.name)
                return self._reading.page(found)
        raise HubError(404, f"this hub has no {call.request.path[:200]}", hint=_HINT)


def _page(segments: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """The repository whose page is asked for, and its revision, if one is; None where the path is no page."""
    for length in (1, 2):
        asked, behind = "/".join(segments[:length]), segments[length:]
        if len(behind) == 2 and behind[0] in ("commit", "tree"):
            return asked, behind[1:]
    return ("/".join(segments), ()) if len(segments) <= 2 and all(segments) else None


def _repo_id(rest: list[str]) -> tuple[str, list[str]]:
    """The id of a repository at the beginning of a path, and what is behind it."""
    if len(rest) == 1 or rest[1] in _VERBS:
        return rest[0], rest[1:]
    return f"{rest[0]}/{rest[1]}", rest[2:]
