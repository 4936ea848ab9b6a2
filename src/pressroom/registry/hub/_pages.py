"""What the hub says of models, in the JSON that clients read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pressroom.registry.base import FileEntry, Version
from pressroom.registry.hub._files import Facts
from pressroom.registry.hub._repositories import MAIN, Repository, commit_of, full_id

_MOST_CARD_TAGS = 50


def model(
    repository: Repository,
    version: Version | None,
    *,
    asked: str,
    card: Mapping[str, Any],
    facts: Sequence[Facts] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A model at a revision; with `facts` its files have sizes and hashes. `asked` is what the client calls it."""
    metadata = version.metadata if version is not None else {}
    files = version.files if version is not None else ()
    created = repository.created
    value: dict[str, Any] = {
        "_id": hashlib.sha256(repository.name.encode()).hexdigest()[:24],
        "id": asked,
        "modelId": asked,
        "author": asked.partition("/")[0] if "/" in asked else None,
        "sha": commit_of(version) if version is not None else repository.commit,
        "createdAt": moment(created),
        "lastModified": moment(version.created if version is not None else created),
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "library_name": _library(card, files),
        "tags": _tags(version, card, metadata),
        "siblings": [_sibling(fact) for fact in facts]
        if facts is not None
        else [{"rfilename": entry.path} for entry in files],
        "usedStorage": sum(entry.size for entry in files),
        "spaces": [],
    }
    pipeline = _pipeline(card, metadata)
    if pipeline is not None:
        value["pipeline_tag"] = pipeline
    if card:
        value["cardData"] = dict(card)
    if config:
        value["config"] = dict(config)
    weights = _safetensors(metadata)
    if weights is not None:
        value["safetensors"] = weights
    return value


def only(value: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """What a client that asks for some properties gets."""
    return {key: value.get(key) for key in ("_id", "id", *wanted) if key in value}


def tree(files: Sequence[FileEntry], folder: str, *, recursive: bool) -> list[FileEntry | str]:
    """Files and folders (as their path) below `folder`, in the order of their paths."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, FileEntry | str] = {}
    for entry in files:
        if not entry.path.startswith(prefix):
            continue
        parts = entry.path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            below = prefix + "/".join(parts[:depth])
            found[below] = below
        if recursive or len(parts) == 1:
            found[entry.path] = entry
    return [found[path] for path in sorted(found)]


def file(facts: Facts, version: Version, *, expand: bool) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "file", "oid": facts.oid, "size": facts.entry.size, "path": facts.entry.path}
    if facts.sha256 is not None:
        value["lfs"] = {"oid": facts.sha256, "size": facts.entry.size, "pointerSize": facts.pointer_size}
    return value | (_last_commit(version) if expand else {})


def folder(path: str, version: Version, *, expand: bool) -> dict[str, Any]:
    # Nothing reads it but to tell two folders apart.
    oid = hashlib.sha1(f"{commit_of(version)}:{path}".encode(), usedforsecurity=False).hexdigest()
    value = {"type": "directory", "oid": oid, "size": 0, "path": path}
    return value | (_last_commit(version) if expand else {})


def plain(repository: Repository, version: Version | None, *, origin: str) -> str:
    """A model at a revision for somebody who opened its address in a browser."""
    if version is None:
        return f"{repository.name}: nothing was pushed to this model yet.\n"
    ref = f"{version.name}:{version.number}"
    lines = [
        ref + (f"  ({', '.join(version.aliases)})" if version.aliases else ""),
        f"commit   {commit_of(version)}",
        f"kind     {version.kind}",
        f"made     {moment(version.created)}",
        *([f"source   {version.source}"] if version.source else []),
        *([f"         {line}" for line in version.description.splitlines()]),
        "",
        *(f"{entry.size:>15,}  {entry.path}" for entry in version.files),
        "",
        "This hub has no pages to look at. What it answers to programs:",
        f"  {origin}/api/models/{full_id(version.name)}/revision/{commit_of(version)}",
        f"  hf download {full_id(version.name)} --revision {version.number}   with HF_ENDPOINT={origin}",
        f"  press show {ref}   in the workspace it belongs to",
        "",
    ]
    return "\n".join(lines)


def refs(repository: Repository) -> dict[str, Any]:
    """`main` as the one branch; numbers and aliases as tags."""
    tags = [(str(v.number), v) for v in repository.versions]
    tags += sorted((alias, v) for v in repository.versions for alias in v.aliases)
    return {
        "branches": [{"name": MAIN, "ref": f"refs/heads/{MAIN}", "targetCommit": repository.commit}],
        "converts": [],
        "tags": [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit_of(v)} for name, v in tags],
        "pullRequests": [],
    }


def commits(repository: Repository, version: Version | None) -> list[dict[str, Any]]:
    """The versions up to this one, newest first."""
    found = []
    for each in reversed(repository.versions):
        if version is None or each.number > version.number:
            continue
        title, _, message = (each.description or f"{each.name}:{each.number}").partition("\n")
        found.append(
            {
                "id": commit_of(each),
                "title": title,
                "message": message.strip(),
                "authors": [
                    {"user": each.source.removeprefix("push:") if each.source.startswith("push:") else "local"}
                ],
                "date": moment(each.created),
            }
        )
    return found


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _sibling(facts: Facts) -> dict[str, Any]:
    value: dict[str, Any] = {"rfilename": facts.entry.path, "size": facts.entry.size, "blobId": facts.oid}
    if facts.sha256 is not None:
        value["lfs"] = {"sha256": facts.sha256, "size": facts.entry.size, "pointerSize": facts.pointer_size}
    return value


def _last_commit(version: Version) -> dict[str, Any]:
    title = (version.description or f"{version.name}:{version.number}").partition("\n")[0]
    return {"lastCommit": {"id": commit_of(version), "title": title, "date": moment(version.created)}}


def _library(card: Mapping[str, Any], files: Iterable[FileEntry]) -> str | None:
    said = card.get("library_name")
    if isinstance(said, str):
        return said
    names = {entry.path for entry in files}
    if "adapter_config.json" in names:
        return "peft"
    if "config.json" in names:
        return "transformers"
    return "gguf" if any(name.endswith(".gguf") for name in names) else None


def _pipeline(card: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    said = card.get("pipeline_tag")
    if isinstance(said, str):
        return said
    architecture = str(metadata.get("architecture") or "")
    causal = architecture.endswith(("ForCausalLM", "LMHeadModel")) or metadata.get("format") == "gguf"
    return "text-generation" if causal else None


def _tags(version: Version | None, card: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    said = card.get("tags")
    if isinstance(said, list):
        found += [tag for tag in said if isinstance(tag, str)][:_MOST_CARD_TAGS]
    if metadata.get("format"):
        found.append(str(metadata["format"]))
    licence = card.get("license") or metadata.get("license")
    if isinstance(licence, str):
        found.append(f"license:{licence}")
    base = card.get("base_model")
    found += [f"base_model:{name}" for name in (base if isinstance(base, list) else [base]) if isinstance(name, str)]
    if version is not None:
        found += [f"kind:{version.kind}", *(f"alias:{alias}" for alias in version.aliases)]
        found += [f"{tag}={value}" if value else tag for tag, value in sorted(version.tags.items())]
    return list(dict.fromkeys(found))


def _safetensors(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    total = metadata.get("parameters")
    if metadata.get("format") != "safetensors" or not isinstance(total, int):
        return None
    return {"parameters": {str(metadata.get("quantization") or "F32"): total}, "total": total}
