"""The parts of the engine `vendor`: what runs in its process."""

from __future__ import annotations

__all__: list[str] = []
