"""What the hub tells: models, their revisions and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import orjson

from pressroom.registry.base import FileEntry, Version
from pressroom.registry.hub import _pages as pages
from pressroom.registry.hub._access import MAKE_ONE
from pressroom.registry.hub._bodies import Gathered, parsed_object
from pressroom.registry.hub._calls import Call, Found, Slow, json_answer, page_of
from pressroom.registry.hub._card import MOST_CARD, front_matter
from pressroom.registry.hub._downloads import file_answer
from pressroom.registry.hub._files import Files
from pressroom.registry.hub._refusals import bad_request, entry_not_found
from pressroom.registry.hub._repositories import MAIN, NAMESPACE, Repositories, commit_of, full_id
from pressroom.registry.hub.base import Answer, HubError, HubRequest, Later
from pressroom.registry.registry import Registry

_MOST_FIELDS = 4_000
_MOST_PATHS = 2_000
_MOST_CONFIG = 1 << 20


class Reading:
    """Answers whoever may read; `service` has looked at that."""

    def __init__(self, registry: Registry, repositories: Repositories, files: Files) -> None:
        self._registry = registry
        self._repositories = repositories
        self._files = files

    def resolve(self, call: Call) -> Found:
        if call.request.method not in ("GET", "HEAD"):
            raise HubError(405, "files are read here, and pushed with a commit", headers={"allow": "GET, HEAD"})
        repository = self._repositories.find(call.name)
        version = repository.at(call.rest[0])
        path = "/".join(call.rest[1:])
        entry = next((each for each in version.files if each.path == path), None) if version is not None else None
        if version is None or entry is None:
            raise entry_not_found(path[:500], commit_of(version) if version is not None else repository.commit)

        def answer() -> Answer:
            (facts,) = self._files.facts([entry])
            return file_answer(self._registry.store, facts, commit_of(version), call.request)

        return self._timely([entry], answer)

    def _timely(self, entries: Sequence[FileEntry], answer: Callable[[], Answer]) -> Found:
        """The answer, now or where it may take long."""
        return answer() if self._files.quick(entries) else Later(answer)

    def info(self, call: Call) -> Found:
        repository = self._repositories.find(call.name)
        version = repository.at(call.rest[0] if call.rest else MAIN)
        entries = version.files if version is not None else ()
        wanted = [*call.query.get("expand", ()), *call.query.get("expand[]", ())]

        def answer() -> Answer:
            facts = self._files.facts(entries) if call.flag("blobs") else None
            config = _config(self._json_file(entries, "config.json"))
            card = self._card(entries)
            value = pages.model(repository, version, asked=call.asked, card=card, facts=facts, config=config)
            return json_answer(pages.only(value, wanted) if wanted else value)

        return self._timely(entries, answer) if call.flag("blobs") else answer()

    def models(self, call: Call) -> Found:
        if call.who.key is None and not call.who.open:
            call.who.read("")
        search = call.query.get("search", [""])[-1].lower()
        author = call.query.get("author", [""])[-1]
        wanted = call.query.get("filter", ())
        full = call.flag("full") or call.flag("cardData") or bool(call.query.get("expand"))
        found: list[dict[str, Any]] = []
        for repository in self._repositories.all():
            name = repository.name
            if not call.who.may_read(name) or search not in name.lower():
                continue
            if author and full_id(name).partition("/")[0] != author:
                continue
            assert repository.head is not None
            card = self._card(repository.head.files) if full or wanted else {}
            value = pages.model(repository, repository.head, asked=name, card=card)
            if all(tag in value["tags"] for tag in wanted):
                found.append(value)
        sort = call.query.get("sort", [""])[-1]
        if sort in ("lastModified", "createdAt"):
            found.sort(key=lambda value: str(value[sort]), reverse=call.query.get("direction", ["-1"])[-1] != "1")
        expand = [*call.query.get("expand", ()), *call.query.get("expand[]", ())]
        if expand:
            found = [pages.only(value, expand) for value in found]
        elif not full:
            for value in found:
                value.pop("siblings")
        shown, headers = page_of(call, found)
        return json_answer(shown, headers=headers)

    def tree(self, call: Call) -> Found:
        version = self._version(call)
        if version is None:
            return json_answer([])
        folder = "/".join(call.rest[1:]).strip("/")
        expand = call.flag("expand")
        listed = pages.tree(version.files, folder, recursive=call.flag("recursive"))
        if folder and not listed:
            raise entry_not_found(folder[:500], commit_of(version))
        shown, headers = page_of(call, listed)
        entries = [each for each in shown if isinstance(each, FileEntry)]

        def answer() -> Answer:
            facts = {fact.entry.path: fact for fact in self._files.facts(entries)}
            values = [
                pages.folder(each, version, expand=expand)
                if isinstance(each, str)
                else pages.file(facts[each.path], version, expand=expand)
                for each in shown
            ]
            return json_answer(values, headers=headers)

        return self._timely(entries, answer)

    def paths_info(self, call: Call) -> Found:
        version = self._version(call)

        def answer(body: bytes) -> Answer:
            paths, expand = _asked_paths(call.request, body)
            if version is None:
                return json_answer([])
            files = {entry.path: entry for entry in version.files}
            entries = [files[path] for path in paths if path in files]
            facts = {fact.entry.path: fact for fact in self._files.facts(entries)}
            values: list[dict[str, Any]] = []
            for path in paths:
                if path in facts:
                    values.append(pages.file(facts[path], version, expand=expand))
                elif any(known.startswith(f"{path}/") for known in files):
                    values.append(pages.folder(path, version, expand=expand))
            return json_answer(values)

        return Slow(answer) if version is not None and not self._files.quick(version.files) else Gathered(answer)

    def page(self, call: Call) -> Found:
        """What somebody sees who opens the address of a repository or of a commit: the same, in plain text."""
        repository = self._repositories.find(call.name)
        version = repository.at(call.rest[0] if call.rest else MAIN)
        text = pages.plain(repository, version, origin=call.request.origin)
        headers = {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff"}
        return Answer(headers=headers, body=text.encode())

    def refs(self, call: Call) -> Found:
        return json_answer(pages.refs(self._repositories.find(call.name)))

    def commits(self, call: Call) -> Found:
        repository = self._repositories.find(call.name)
        version = repository.at(call.rest[0] if call.rest else MAIN)
        shown, headers = page_of(call, pages.commits(repository, version))
        return json_answer(shown, headers=headers)

    def discussions(self, call: Call) -> Found:
        """There are none; some clients look whether somebody proposed a conversion."""
        self._repositories.find(call.name)
        return json_answer({"discussions": [], "count": 0, "start": 0, "numClosedDiscussions": 0})

    def whoami(self, call: Call) -> Answer:
        key = call.who.key
        if key is None:
            raise HubError(
                401,
                "no key was shown",
                hint=f"Set HF_TOKEN to one: {MAKE_ONE}.",
                headers={"www-authenticate": "Bearer"},
            )
        writes = any(right.partition(":")[0] in ("write", "admin") for right in key.rights)
        return json_answer(
            {
                "type": "user",
                "id": key.name,
                "name": NAMESPACE,  # the namespace of what this key pushes without naming one
                "fullname": key.name,
                "orgs": [],
                "auth": {
                    "type": "access_token",
                    "accessToken": {"displayName": key.name, "role": "write" if writes else "read"},
                },
            }
        )

    def _version(self, call: Call) -> Version | None:
        return self._repositories.find(call.name).at(call.rest[0] if call.rest else MAIN)

    def _card(self, entries: Sequence[FileEntry]) -> dict[str, Any]:
        readme = next((entry for entry in entries if entry.path == "README.md"), None)
        if readme is None:
            return {}
        with self._registry.store.open(readme.blob) as file:
            try:
                return front_matter(file.read(MOST_CARD))
            except ValueError:
                return {}

    def _json_file(self, entries: Sequence[FileEntry], path: str) -> dict[str, Any]:
        entry = next((entry for entry in entries if entry.path == path), None)
        if entry is None or entry.size > _MOST_CONFIG:
            return {}
        with self._registry.store.open(entry.blob) as file:
            try:
                value = orjson.loads(file.read())
            except orjson.JSONDecodeError:
                return {}
        return value if isinstance(value, dict) else {}


def _asked_paths(request: HubRequest, body: bytes) -> tuple[list[str], bool]:
    """The paths of a form or of JSON, and whether more is to be said of each."""
    if "json" in request.headers.get("content-type", ""):
        value = parsed_object(body, "the request")
        paths, expand = value.get("paths", []), value.get("expand") is True
        paths = [paths] if isinstance(paths, str) else paths
    else:
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError as error:
            raise bad_request("the form is not one, or has too many fields") from error
        paths, expand = fields.get("paths", []), fields.get("expand", [""])[-1].lower() == "true"
    if not isinstance(paths, list) or len(paths) > _MOST_PATHS or not all(isinstance(path, str) for path in paths):
        raise bad_request(f"the request has no list of paths, or more than {_MOST_PATHS:,}")
    return list(dict.fromkeys(path.strip("/") for path in paths)), expand


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("architectures", "model_type") if key in config}
