"""KServe V2 over gRPC. Its libraries are loaded when the door opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.grpc._server import GrpcServer, missing_library, need_libraries, open_grpc

__all__ = ["GrpcServer", "missing_library", "need_libraries", "open_grpc"]

__getattr__ = _lazily(__name__, dict.fromkeys(__all__, "_server"))
