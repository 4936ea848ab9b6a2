"""What the hub takes: names, files, commits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote

from pressroom.kernel import HubSettings, Workspace
from pressroom.registry.base import FileEntry, Version
from pressroom.registry.hub._access import Who
from pressroom.registry.hub._bodies import Gathered, parsed_object
from pressroom.registry.hub._calls import Call, Found, Slow, json_answer
from pressroom.registry.hub._card import front_matter
from pressroom.registry.hub._commits import CommitSink, Tellings
from pressroom.registry.hub._files import Facts, Files, is_large
from pressroom.registry.hub._publishing import Publisher, Push, check_path
from pressroom.registry.hub._refusals import bad_request
from pressroom.registry.hub._repositories import MAIN, Repositories, Repository, commit_of, full_id, name_of
from pressroom.registry.hub._spool import Spool
from pressroom.registry.hub._uploads import Uploads
from pressroom.registry.hub._xet import Xet
from pressroom.registry.hub.base import Answer, HubError, HubRequest
from pressroom.registry.registry import Registry

LFS = ".git"
_MOST_PATHS = 2_000


class Writing:
    """Takes what clients push, and looks at whether they may."""

    def __init__(self, workspace: Workspace, registry: Registry, repositories: Repositories, files: Files) -> None:
        settings: HubSettings = workspace.settings.hub
        self._registry = registry
        self._repositories = repositories
        self._files = files
        self._spool = Spool(workspace)
        self._uploads = Uploads(self._spool, settings)
        self.xet = Xet(self._spool, settings, self._opened)
        self._tellings = Tellings()
        self._publisher = Publisher(workspace, registry, repositories, self._spool)

    def close(self) -> None:
        self._uploads.close()
        self.xet.close()
        self._spool.close()

    def create(self, call: Call, body: bytes) -> Answer:
        asked = _repo_of(parsed_object(body, "the request"))
        name = name_of(asked)
        call.who.write(name)
        url = f"{call.request.origin}/{full_id(name)}"
        if not self._repositories.create(name):
            return json_answer(
                {"error": f"There is a model {name!r} already.", "url": url, "name": full_id(name)}, status=409
            )
        return json_answer({"url": url, "name": full_id(name), "id": full_id(name)})

    def delete(self, call: Call, body: bytes) -> Answer:
        asked = _repo_of(parsed_object(body, "the request"))
        name = name_of(asked)
        call.who.write(name)
        if self._repositories.find(name).versions:
            raise HubError(
                403,
                f"{name} has versions, and these are not removed over the hub",
                hint="press rm looks first whether something is deployed, aliased or made from them.",
            )
        self._repositories.remove_empty(name)
        return json_answer({})

    def preupload(self, call: Call) -> Found:
        repository, version = self._pushed_to(call)
        entries = {entry.path: entry for entry in version.files} if version is not None else {}

        def answer(body: bytes) -> Answer:
            asked = parsed_object(body, "the request").get("files")
            if not isinstance(asked, list) or len(asked) > _MOST_PATHS:
                raise bad_request(f"the request has no list of files, or more than {_MOST_PATHS:,}")
            told: dict[str, FileEntry | None] = {}
            for each in asked:
                path, size = (each.get("path"), each.get("size")) if isinstance(each, dict) else (None, None)
                if not isinstance(path, str) or type(size) is not int or size < 0:
                    raise bad_request("a file of the request has no path, or no size in bytes")
                check_path(path)
                told[path] = entries.get(path)
            known = {fact.entry.path: fact for fact in self._files.facts(e for e in told.values() if e is not None)}
            if "/" not in call.asked:
                # Where nothing changed, clients make a link of the id and fail if it has no namespace. So there is
                # always something to send: the smallest file.
                known.pop(min(asked, key=_weight)["path"], None) if asked else None
            values = [_mode(each["path"], each["size"], known.get(each["path"])) for each in asked]
            self._tellings.tell(repository.name, call.who.name, told)
            return json_answer({"files": values})

        return Gathered(answer)

    def commit(self, call: Call) -> Found:
        repository, _ = self._pushed_to(call)
        if call.flag("create_pr"):
            raise bad_request("this hub has no pull requests", "Push to main; an alias moves with `press promote`.")

        def done(push: Push, version: Version | None) -> Answer:
            commit = commit_of(version) if version is not None else repository.commit
            return json_answer(
                {
                    "success": True,
                    "commitOid": commit,
                    "commitUrl": f"{call.request.origin}/{full_id(push.name)}/commit/{commit}",
                    "hookOutput": "",
                }
            )

        return CommitSink(
            Push(repository.name, call.who.name),
            spool=self._spool,
            publisher=self._publisher,
            tellings=self._tellings,
            held=lambda sha256: self._held(call.who, sha256),
            done=done,
        )

    def batch(self, call: Call) -> Found:
        call.who.write(call.name)
        self._repositories.find(call.name)
        origin = call.request.origin
        return Gathered(
            lambda body: self._uploads.batch(
                body,
                address=f"{origin}/api/uploads",
                verify=f"{origin}/{quote(full_id(call.name))}{LFS}/info/lfs/verify",
                held=lambda sha256: self._held(call.who, sha256) is not None,
            )
        )

    def xet_token(self, call: Call) -> Found:
        self._pushed_to(call)
        return self.xet.token(call.name, call.who, call.request.origin)

    def _opened(self, who: Who, sha256: str) -> tuple[BinaryIO, int] | None:
        """Bytes of the store by their SHA-256, with how many they are, where whoever asks may read them."""
        held = self._held(who, sha256)
        return (self._registry.store.open(held.blob), held.size) if held is not None else None

    def verify(self, call: Call) -> Found:
        call.who.write(call.name)

        def answer(body: bytes) -> Answer:
            asked = parsed_object(body, "the request")
            sha256 = asked.get("oid")
            found = None
            if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256):
                path = self._spool.get(sha256)
                held = self._held(call.who, sha256) if path is None else None
                found = path.stat().st_size if path is not None else held.size if held is not None else None
            if found is None or found != asked.get("size"):
                raise HubError(404, "this file did not come, or not all of it", hint="Push again.")
            return json_answer({"oid": sha256, "size": found})

        return Gathered(answer)

    def upload(self, request: HubRequest, segments: tuple[str, ...], query: Mapping[str, Sequence[str]]) -> Found:
        token = query.get("token", [""])[-1]
        match (request.method, *segments):
            case ("PUT", number) if number.isdecimal() and len(number) < 9:
                return self._uploads.receive(token, int(number))
            case ("POST", "complete"):
                return Slow(lambda body: self._uploads.complete(token, body))
        raise HubError(404, "there is no such upload")

    def _pushed_to(self, call: Call) -> tuple[Repository, Version | None]:
        call.who.write(call.name)
        repository = self._repositories.find(call.name)
        revision = call.rest[0] if call.rest else MAIN
        version = repository.at(revision)
        if version is not repository.head:
            raise bad_request(
                f"{revision[:200]!r} of {repository.name} is not main: pushes go to main",
                "Versions do not change; an alias moves with `press promote`.",
            )
        return repository, version

    def _held(self, who: Who, sha256: str) -> FileEntry | None:
        """A file with these bytes in a version that whoever asks may read: a hash must not open what a key does not."""
        blob = self._registry.by_sha256(sha256)
        if blob is None:
            return None
        for version in self._registry.list():
            if who.may_read(version.name):
                found = next((entry for entry in version.files if entry.blob == blob), None)
                if found is not None:
                    return found
        return None


def validated(body: bytes) -> Answer:
    """Whether the front matter of a model card can be read."""
    content = parsed_object(body, "the request").get("content")
    if not isinstance(content, str):
        raise bad_request("the request has no content")
    try:
        front_matter(content.encode(errors="replace"))
    except ValueError as error:
        return json_answer(
            {"error": "Invalid metadata", "errors": [{"message": str(error)}], "warnings": []}, status=400
        )
    return json_answer({"errors": [], "warnings": []})


def _repo_of(asked: Mapping[str, Any]) -> str:
    """The id in a request to create or delete."""
    name, organization, kind = asked.get("name"), asked.get("organization"), asked.get("type")
    if kind not in (None, "model"):
        raise bad_request(f"this hub has models, and no {str(kind)[:40]}s")
    if not isinstance(name, str) or not isinstance(organization, str | None):
        raise bad_request("the request has no name")
    return f"{organization}/{name}" if organization else name


def _mode(path: str, size: int, known: Facts | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "path": path,
        "uploadMode": "lfs" if is_large(path, size) else "regular",
        "shouldIgnore": False,
    }
    if known is not None:
        # As the client compares it: the SHA-256 of what is large, the git object id of what is not.
        value["oid"] = known.etag
    return value


def _weight(asked: Mapping[str, Any]) -> tuple[bool, int]:
    return is_large(asked["path"], asked["size"]), asked["size"]
