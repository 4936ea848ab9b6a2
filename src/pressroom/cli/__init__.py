"""The `press` command: one file a group of commands, each imported when it is called."""

from __future__ import annotations

from pressroom.cli._app import main, press

__all__ = ["main", "press"]
