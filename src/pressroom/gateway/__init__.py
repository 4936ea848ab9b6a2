"""The data plane: one address in front of every engine, speaking OpenAI's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pressroom.gateway.routes import Route, RouteTable

if TYPE_CHECKING:
    from pressroom.gateway.app import Gateway
    from pressroom.gateway.server import serve

__all__ = ["Gateway", "Route", "RouteTable", "serve"]

# Where each name is that needs the HTTP libraries: loaded when used.
_LAZY = {"Gateway": "app", "serve": "server"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
