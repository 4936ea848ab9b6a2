"""inference.GRPCInferenceService: each method as bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]

from pressroom import __version__
from pressroom.gateway.asking import Asker
from pressroom.gateway.control import ControlThreads, ModelControl, Servable, indexed, not_mounted
from pressroom.gateway.grpc import _reading as reading
from pressroom.gateway.grpc import _wire as wire
from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.gateway.grpc._calls import answered, called, refuse
from pressroom.gateway.grpc._stream import Session
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols._v2_models import EXTENSIONS, Face, Faces
from pressroom.gateway.protocols._v2_tensors import Invalid
from pressroom.gateway.routes import RouteTable

NAME = "inference.GRPCInferenceService"
_DOOR = "v2.grpc.infer"


class Service:
    """Answers the calls of the service. Belongs to one event loop."""

    def __init__(
        self,
        asker: Asker,
        routes: RouteTable,
        control: ModelControl | None,
        *,
        ready: Callable[[], bool],
        refused: Callable[[str, str, int], None] | None,
    ) -> None:
        self._asker = asker
        self._routes = routes
        self._control = control
        self._ready = ready
        self._refused = refused
        self._faces = Faces(routes)
        self._threads = ControlThreads()
        self._sessions: set[Session] = set()

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """Its methods by path."""
        unary = {
            "ModelInfer": self._infer,
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        found = {f"/{NAME}/{name}": grpc.unary_unary_rpc_method_handler(method) for name, method in unary.items()}
        found[f"/{NAME}/ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return found

    def stop(self) -> None:
        """End the streams that wait for another request."""
        for session in list(self._sessions):
            session.stop()

    # Inference.

    async def _infer(self, data: bytes, context: Any) -> bytes:
        name = ""
        try:
            request = reading.parsed(data)
            face = reading.face_of(self._faces, self._routes, request.model_name, request.model_version)
            name = face.name
            job, raw = reading.read(request, face)
            if job.stream:
                raise Invalid("'stream' is true, but ModelInfer answers in one piece. Use ModelStreamInfer.")
        except Invalid as error:
            if self._refused is not None:
                self._refused(name, _DOOR, error.status)
            await refuse(context, Problem(error.status, error.message))
        found = await answered(self._asker, job, door=_DOOR)
        if isinstance(found, Problem):
            await refuse(context, found)
        return wire.response(job, found, raw=raw)

    async def _stream(self, _: object, context: Any) -> None:
        session = Session(self._asker, self._routes, self._faces)
        self._sessions.add(session)
        try:
            await session.serve(context)
        finally:
            self._sessions.discard(session)

    # The server.

    async def _server_live(self, data: bytes, context: Any) -> bytes:
        return _bytes(messages.ServerLiveResponse(live=True))

    async def _server_ready(self, data: bytes, context: Any) -> bytes:
        return _bytes(messages.ServerReadyResponse(ready=self._ready()))

    async def _server_metadata(self, data: bytes, context: Any) -> bytes:
        return _bytes(
            messages.ServerMetadataResponse(name="pressroom", version=__version__, extensions=list(EXTENSIONS))
        )

    # One model.

    async def _model_ready(self, data: bytes, context: Any) -> bytes:
        request = await _read(messages.ModelReadyRequest, data, context)
        face = await self._face(request.name, request.version, context)
        return _bytes(messages.ModelReadyResponse(ready=face.route.ready))

    async def _model_metadata(self, data: bytes, context: Any) -> bytes:
        request = await _read(messages.ModelMetadataRequest, data, context)
        control = self._control
        if control is not None and self._faces.of(request.name) is None:
            found = await called(self._threads, lambda: control.metadata(request.name))
            if isinstance(found, Problem):
                await refuse(context, found)
            face = Face(found.as_route())
        else:
            face = await self._face(request.name, request.version, context)
        return _bytes(messages.ModelMetadataResponse(**face.metadata()))

    async def _model_config(self, data: bytes, context: Any) -> bytes:
        request = await _read(messages.ModelConfigRequest, data, context)
        face = await self._face(request.name, request.version, context)
        return _bytes(messages.ModelConfigResponse(config=messages.ModelConfig(**face.config())))

    async def _face(self, name: str, version: str, context: Any) -> Face:
        try:
            return reading.face_of(self._faces, self._routes, name, version)
        except Invalid as error:
            await refuse(context, Problem(error.status, error.message))

    # The repository.

    async def _index(self, data: bytes, context: Any) -> bytes:
        request = await _read(messages.RepositoryIndexRequest, data, context)
        found: list[Servable] | Problem = (
            indexed(self._routes) if self._control is None else await called(self._threads, self._control.index)
        )
        if isinstance(found, Problem):
            await refuse(context, found)
        rows = [each.row() for each in found if each.ready or not request.ready]
        return _bytes(messages.RepositoryIndexResponse(models=rows))

    async def _load(self, data: bytes, context: Any) -> bytes:
        request = await _read(messages.RepositoryModelLoadRequest, data, context)
        await self._change("load", request, context)
        return _bytes(messages.RepositoryModelLoadResponse())

    async def _unload(self, data: bytes, context: Any) -> bytes:
        request = await _read(messages.RepositoryModelUnloadRequest, data, context)
        await self._change("unload", request, context)
        return _bytes(messages.RepositoryModelUnloadResponse())

    async def _change(self, verb: str, request: Any, context: Any) -> None:
        for name, parameter in request.parameters.items():
            if name != "unload_dependents" or parameter.bool_param:
                message = f"The parameter '{name[:80]}' of a {verb} is not understood; a model is served as deployed."
                await refuse(context, Problem(400, message))
        control = self._control
        if control is None:
            await refuse(context, Problem(400, not_mounted(verb)))
        name = request.model_name
        change = control.load if verb == "load" else control.unload
        found = await called(self._threads, lambda: change(name))
        if isinstance(found, Problem):
            await refuse(context, found)


async def _read(kind: Any, data: bytes, context: Any) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return kind.FromString(data)
    except DecodeError:
        await refuse(context, Problem(400, f"This is not a {kind.DESCRIPTOR.name}."))


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
