"""The hub: the registry, spoken to in the protocol of the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily
from pressroom.registry.hub.base import Answer, HubError, HubRequest, HubService, Later, Readable, Sink

if TYPE_CHECKING:
    from pressroom.registry.hub.service import Hub

__all__ = ["Answer", "Hub", "HubError", "HubRequest", "HubService", "Later", "Readable", "Sink"]

# It needs the database: loaded when used.
__getattr__ = _lazily(__name__, {"Hub": "service"})
