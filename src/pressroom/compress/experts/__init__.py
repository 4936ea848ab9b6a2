"""A dense feed-forward as experts behind a router: its channels split, or the whole of it copied.

with inputs_seen(model, text, tokens=8192, layers=30, width=576, folder=folder) as seen:
    found = split(seen[3], gate, up, down, experts=8, used=4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pressroom.compress.experts.base import Loads, Split
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.experts._copying import copies_router
    from pressroom.compress.experts._seeing import inputs_seen
    from pressroom.compress.experts._splitting import split

__all__ = ["Loads", "Split", "copies_router", "inputs_seen", "split"]

_find = _lazily(__name__, {"copies_router": "_copying", "inputs_seen": "_seeing", "split": "_splitting"})


def __getattr__(name: str) -> Any:
    return _find(name)
