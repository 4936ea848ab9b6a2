"""The protocols the gateway speaks, one file each."""

from __future__ import annotations

__all__: list[str] = []
