"""Pressroom takes a language model from its weights to a product.

The top package exports a handful of names; the rest is reached by its part (`pressroom.store`,
`pressroom.registry`, `pressroom.engines`, `pressroom.gateway`, `pressroom.deploy`). Importing it does nothing
and loads nothing: each name is resolved when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pressroom._version import __version__

if TYPE_CHECKING:
    from pressroom.kernel import PressroomError, Ref, Settings, Workspace

__all__ = ["PressroomError", "Ref", "Settings", "Workspace", "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from pressroom import kernel

        return getattr(kernel, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
