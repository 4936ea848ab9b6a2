"""KServe V2 over gRPC. Its libraries are loaded when the door opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.grpc._server import GrpcServer, missing_library, open_grpc

__all__ = ["GrpcServer", "missing_library", "open_grpc"]

__getattr__ = _lazily(__name__, {"GrpcServer": "_server", "missing_library": "_server", "open_grpc": "_server"})
