"""The data plane: one address in front of every engine, speaking OpenAI's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway._choosing import Speeds
from pressroom.gateway.routes import Route, RouteTable
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.app import Gateway
    from pressroom.gateway.control import ModelControl, Servable, Standing
    from pressroom.gateway.server import serve

__all__ = ["Gateway", "ModelControl", "Route", "RouteTable", "Servable", "Speeds", "Standing", "serve"]

# Where each name is that needs the HTTP libraries: loaded when used.
__getattr__ = _lazily(
    __name__,
    {"Gateway": "app", "ModelControl": "control", "Servable": "control", "Standing": "control", "serve": "server"},
)
