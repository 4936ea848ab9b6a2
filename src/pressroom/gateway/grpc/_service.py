"""inference.GRPCInferenceService: each method as bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pressroom import __version__
from pressroom.gateway._v2_whole import Found, Whole
from pressroom.gateway.asking import Asked, Asker
from pressroom.gateway.control import ControlThreads, ModelControl, Servable, indexed, not_mounted
from pressroom.gateway.grpc import _reading as reading
from pressroom.gateway.grpc import _wire as wire
from pressroom.gateway.grpc import inference_pb2 as messages
from pressroom.gateway.grpc._call import Call
from pressroom.gateway.grpc._calls import Refusal, Unary, by_coroutine, called
from pressroom.gateway.grpc._door import Method
from pressroom.gateway.grpc._refusing import refuse
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

    def methods(self) -> dict[str, Method]:
        """Its methods by path."""
        answered = {
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
        found: dict[str, Method] = {
            f"/{NAME}/{name}": by_coroutine(method, open=name.startswith("Server")) for name, method in answered.items()
        }
        found[f"/{NAME}/ModelInfer"] = Method(lambda call: Unary(call, self._infer))
        found[f"/{NAME}/ModelStreamInfer"] = Method(self._stream)
        return found

    # Inference.

    def _infer(self, call: Call, data: bytes) -> Asked | None:
        name = ""
        try:
            request = reading.parsed(data)
            face = reading.face_of(self._faces, self._routes, request.model_name, request.model_version, call.client)
            name = face.name
            job, raw = reading.read(request, face)
            if job.stream:
                raise Invalid("'stream' is true, but ModelInfer answers in one piece. Use ModelStreamInfer.")
        except Invalid as error:
            if self._refused is not None:
                self._refused(name, _DOOR, error.status)
            refuse(call, Problem(error.status, error.message))
            return None

        def answered(found: Found) -> None:
            if isinstance(found, Problem):
                refuse(call, found)
            else:
                call.reply(wire.response(job, found, raw=raw, route=whole.route))

        whole = Whole(job, answered)
        return whole.ask(self._asker, _DOOR, call.client)

    def _stream(self, call: Call) -> Session:
        return Session(call, self._asker, self._routes, self._faces)

    # The server.

    async def _server_live(self, call: Call, data: bytes) -> bytes:
        return _bytes(messages.ServerLiveResponse(live=True))

    async def _server_ready(self, call: Call, data: bytes) -> bytes:
        return _bytes(messages.ServerReadyResponse(ready=self._ready()))

    async def _server_metadata(self, call: Call, data: bytes) -> bytes:
        return _bytes(
            messages.ServerMetadataResponse(name="pressroom", version=__version__, extensions=list(EXTENSIONS))
        )

    # One model.

    async def _model_ready(self, call: Call, data: bytes) -> bytes:
        request = _read(messages.ModelReadyRequest, data)
        face = self._face(call, request.name, request.version)
        return _bytes(messages.ModelReadyResponse(ready=face.route.available))

    async def _model_metadata(self, call: Call, data: bytes) -> bytes:
        request = _read(messages.ModelMetadataRequest, data)
        control = self._control
        if control is not None and self._faces.of(request.name) is None and call.client.caller.may_ask(request.name):
            found = await called(self._threads, lambda: control.metadata(request.name))
            face = Face(found.as_route())
        else:
            face = self._face(call, request.name, request.version)
        return _bytes(messages.ModelMetadataResponse(**face.metadata()))

    async def _model_config(self, call: Call, data: bytes) -> bytes:
        request = _read(messages.ModelConfigRequest, data)
        face = self._face(call, request.name, request.version)
        return _bytes(messages.ModelConfigResponse(config=messages.ModelConfig(**face.config())))

    def _face(self, call: Call, name: str, version: str) -> Face:
        try:
            return reading.face_of(self._faces, self._routes, name, version, call.client)
        except Invalid as error:
            raise Refusal(Problem(error.status, error.message)) from None

    # The repository.

    async def _index(self, call: Call, data: bytes) -> bytes:
        request = _read(messages.RepositoryIndexRequest, data)
        found: list[Servable] = (
            indexed(self._routes) if self._control is None else await called(self._threads, self._control.index)
        )
        may_ask = call.client.caller.may_ask
        rows = [each.row() for each in found if may_ask(each.name) and (each.ready or not request.ready)]
        return _bytes(messages.RepositoryIndexResponse(models=rows))

    async def _load(self, call: Call, data: bytes) -> bytes:
        request = _read(messages.RepositoryModelLoadRequest, data)
        await self._change(call, "load", request)
        return _bytes(messages.RepositoryModelLoadResponse())

    async def _unload(self, call: Call, data: bytes) -> bytes:
        request = _read(messages.RepositoryModelUnloadRequest, data)
        await self._change(call, "unload", request)
        return _bytes(messages.RepositoryModelUnloadResponse())

    async def _change(self, call: Call, verb: str, request: Any) -> None:
        if not call.client.caller.admin:
            raise Refusal(Problem(403, f"A key with the right 'admin' may {verb} models; this one may not."))
        for name, parameter in request.parameters.items():
            if name != "unload_dependents" or parameter.bool_param:
                message = f"The parameter '{name[:80]}' of a {verb} is not understood; a model is served as deployed."
                raise Refusal(Problem(400, message))
        control = self._control
        if control is None:
            raise Refusal(Problem(400, not_mounted(verb)))
        name = request.model_name
        change = control.load if verb == "load" else control.unload
        await called(self._threads, lambda: change(name))


def _read(kind: Any, data: bytes) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return kind.FromString(data)
    except DecodeError:
        raise Refusal(Problem(400, f"This is not a {kind.DESCRIPTOR.name}.")) from None


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
