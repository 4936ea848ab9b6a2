"""Several processes of one server that answer: the server's side of them, and the process of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.workers.shared import SharedTable
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.workers.owner import Workers
    from pressroom.gateway.workers.serving import serve_with_workers, wait_for_orphans

__all__ = ["SharedTable", "Workers", "serve_with_workers", "wait_for_orphans"]

# Loaded when used: a server without workers needs none of it.
__getattr__ = _lazily(__name__, {"Workers": "owner", "serve_with_workers": "serving", "wait_for_orphans": "serving"})
