"""Weights in shards on a web server: the index is fetched first, and says which files make up the model.

A web server does not list its folders, so the files that belong beside the shards are asked for by their usual names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pressroom.kernel import SourceError
from pressroom.registry.base import is_file_path
from pressroom.registry.sources._address import Address
from pressroom.registry.sources._checks import is_page
from pressroom.registry.sources._downloads import Downloads
from pressroom.registry.sources._naming import shown
from pressroom.registry.sources._seen import seen_before, text_of
from pressroom.registry.sources._wanted import Wanted
from pressroom.registry.sources.base import Fetched, Found, Order

#: How the name of an index ends.
INDEX = ".safetensors.index.json"
# Longer than the index of any model; a line for each tensor.
_MOST_INDEX = 64 << 20
_MOST_SHARDS = 10_000
_BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "README.md",
)


def fetch_sharded(address: Address, order: Order) -> Fetched:
    """The shards that an index names, and what belongs beside them.

    Raises:
        SourceError: it is no index, or one that names files elsewhere.
        NetworkError, DigestMismatchError, StoreFullError: as for every download.
    """
    if order.member is not None:
        raise SourceError(
            f"{address.shown} is an index: it stands for several files",
            hint="Leave '#' and what follows out, or name one of its shards.",
        )
    index = Wanted(address=address, local=order.workdir / "index", most=_MOST_INDEX)
    first = Downloads([index], task=address.name, events=order.events, connections=1)
    first.run()
    shards = _shards(index.local, address.shown)
    folder = order.workdir / "files"
    # Small ones first: what is wrong with them costs least.
    wanted = [_wanted(address, name, order, folder / f"beside-{n}", optional=True) for n, name in enumerate(_BESIDE)]
    wanted += [_wanted(address, name, order, folder / f"shard-{n}", optional=False) for n, name in enumerate(shards)]
    name = _name(address)
    rest = Downloads(wanted, task=name, events=order.events, connections=order.connections)
    # Some servers answer with a page for what they have not.
    here = [one for one in rest.run() if not (one.wanted.optional and one.blob is None and is_page(one.wanted.local))]
    found = [
        Found(
            path=one.wanted.address.name,
            local=one.wanted.local if one.blob is None else None,
            blob=one.blob,
            text=text_of(one),
        )
        for one in here
    ]
    return Fetched(
        name=name,
        origin=address.shown,
        # Under the name by which every reader looks for it.
        files=(Found(path="model" + INDEX, local=index.local), *found),
        fetched=first.fetched + rest.fetched,
    )


def _wanted(index: Address, name: str, order: Order, local: Path, *, optional: bool) -> Wanted:
    address = index.beside(name)
    return Wanted(address=address, local=local, optional=optional, seen=seen_before(address, order), likely=order.again)


def _shards(index: Path, where: str) -> Sequence[str]:
    try:
        said = json.loads(index.read_bytes())
        names = sorted(set(said["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{where} is not an index of safetensors", hint="It should say of each tensor in which file it is."
        ) from error
    for name in names:
        plain = isinstance(name, str) and is_file_path(name) and "/" not in name and name.endswith(".safetensors")
        if not plain:
            raise SourceError(
                f"{where} is refused: it names '{shown(str(name))}' as a file with tensors",
                hint="An honest publisher names safetensors that lie beside the index.",
            )
    if not 1 <= len(names) <= _MOST_SHARDS:
        raise SourceError(f"{where} names {len(names)} files", hint=f"It should name 1 to {_MOST_SHARDS}.")
    return names


def _name(address: Address) -> str:
    """The folder that the index lies in; on a hub, where that is a revision, the model's."""
    path = unquote(urlsplit(address.url).path)
    hub = re.search(r"/([^/]+)/resolve/[^/]+/[^/]+$", path)
    return hub[1] if hub else PurePosixPath(path).parent.name or address.name.removesuffix(INDEX)
