"""Names of a package that are loaded when they are first used, so that importing the package stays cheap.

if TYPE_CHECKING:
    from pressroom.part.module import Name      # for editors and the type checker
__getattr__ = lazily(__name__, {"Name": "module"})
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that finds each name in the submodule of `package` that `modules` says."""

    def find(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
