"""The data plane: one address in front of every engine, speaking OpenAI's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway._choosing import Speeds
from pressroom.gateway.routes import Branch, Route, RouteTable, Tally
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway._grant import Books
    from pressroom.gateway.app import Gateway
    from pressroom.gateway.bookkeeping import Bookkeeping
    from pressroom.gateway.control import ModelControl, Servable, Standing
    from pressroom.gateway.server import serve

__all__ = [
    "Bookkeeping",
    "Books",
    "Branch",
    "Gateway",
    "ModelControl",
    "Route",
    "RouteTable",
    "Servable",
    "Speeds",
    "Standing",
    "Tally",
    "serve",
]

# Where each name is that needs the HTTP libraries: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Bookkeeping": "bookkeeping",
        "Books": "_grant",
        "Gateway": "app",
        "ModelControl": "control",
        "Servable": "control",
        "Standing": "control",
        "serve": "server",
    },
)
