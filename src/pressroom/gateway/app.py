"""The gateway: which request goes where, and the answers it gives itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from pressroom import __version__
from pressroom.gateway._books_metrics import BooksFigures
from pressroom.gateway._dispatcher import Dispatcher
from pressroom.gateway._entrance import Entrance, Ids, id_of
from pressroom.gateway._generation import House, no_model
from pressroom.gateway._grant import Books
from pressroom.gateway._http_request import Request
from pressroom.gateway._http_server import HttpConnection
from pressroom.gateway._hub import STREAMED, HubDoor
from pressroom.gateway._origin import OriginGuard
from pressroom.gateway._receivers import HttpReceiver
from pressroom.gateway._v2 import PATHS as V2_PATHS
from pressroom.gateway._v2 import V2Door
from pressroom.gateway._v2_exchanges import error
from pressroom.gateway._waiting import WaitingRoom
from pressroom.gateway.admission import Client
from pressroom.gateway.metrics import HubSeries, Metrics
from pressroom.gateway.problems import Problem, server_error
from pressroom.gateway.protocols.openai import ENDPOINTS, Endpoint, read
from pressroom.gateway.routes import Route, RouteTable
from pressroom.gateway.upstream import Upstream
from pressroom.kernel import GatewaySettings
from pressroom.registry.hub.base import PATHS, HubService

if TYPE_CHECKING:
    import socket

    from pressroom.gateway.access import Access
    from pressroom.gateway.batches import BatchDoor
    from pressroom.gateway.control import ModelControl
    from pressroom.gateway.grpc import GrpcServer

_JSON = b"content-type: application/json\r\n"
_MODELS = b"/v1/models"
# Clients that think they talk to KServe's OpenAI endpoint put this in front.
_PREFIX = b"/openai"
_RETRY_STARTING_S = 2
_READING = (b"GET", b"HEAD")
_CHANGING = (b"POST", b"PUT", b"PATCH", b"DELETE")

Handler = Callable[[HttpConnection, Request, bytes], None]


class Gateway:
    """Answers on behalf of the engines in `routes`. `ready` says whether everything that should answer does; without
    it, every route must be ready. `hub` answers what a client of a model hub asks, `batches` keeps files and runs
    batches of requests, and `control` loads models and lets them go. Belongs to one event loop, the one `serve` runs
    in, and closes hub and batches with itself."""

    def __init__(
        self,
        settings: GatewaySettings,
        routes: RouteTable,
        *,
        ready: Callable[[], bool] | None = None,
        hub: HubService | None = None,
        batches: BatchDoor | None = None,
        control: ModelControl | None = None,
        access: Access | None = None,
        books: Books | None = None,
    ) -> None:
        self.settings = settings
        self._entrance = Entrance(access)
        self.metrics = Metrics()
        self._routes = routes
        self._ready = ready if ready is not None else self._every_route_ready
        self._guard = OriginGuard(settings.host)
        self._upstream = Upstream(
            connect_timeout_s=settings.connect_timeout_s, first_byte_timeout_s=settings.first_byte_timeout_s
        )
        waiting = WaitingRoom(most=settings.max_waiting)
        routes.listen(waiting.changed)
        self.metrics.waiting = waiting.of
        self._house = House(settings, routes, self._upstream, self.metrics, waiting)
        self._count = self._house.refused
        #: Asks models: every door goes by it.
        books = books or Books()
        self.ids = Ids()
        self.dispatcher = Dispatcher(self._house, books, self.ids)
        self.metrics.more.append(BooksFigures(routes, self.dispatcher.steerings, self.dispatcher.cache, books).collect)
        self._hub: HubDoor | None = None
        if hub is not None:
            self.metrics.hub = HubSeries()
            self._hub = HubDoor(hub, self.metrics.hub)
            self._hub.bound_to(settings.host)
        self.control = control
        self._v2 = V2Door(self.dispatcher, routes, ready=self._ready, control=control, refused=self._count)
        self._batches = batches
        reads: dict[bytes, Handler] = {
            b"/": self._index,
            _MODELS: self._models,
            b"/health/live": self._live,
            b"/health/ready": self._readiness,
            b"/metrics": self._metrics,
            b"/openapi.json": self._openapi,
            _PREFIX + _MODELS: self._models,
        }
        self._reads = reads
        self._completions: dict[bytes, Endpoint] = {
            prefix + endpoint.path: endpoint for endpoint in ENDPOINTS for prefix in (b"", _PREFIX)
        }

    def bound_to(self, host: str, url: str = "") -> None:
        """Say which address it listens on, and where a client on this machine reaches it; the default address is that
        of the settings."""
        self._guard = OriginGuard(host)
        if self._entrance.access is not None:
            self._entrance.access.bound_to(host)
        if self._hub is not None:
            self._hub.bound_to(host)
        if self._batches is not None and url:
            self._batches.bound_to(url)

    async def open_grpc(self, host: str, port: int, *, bound: socket.socket | None = None) -> GrpcServer:
        """Open the gRPC door on `host`:`port` (0: any free one), or on a socket that is `bound` already.

        Raises:
            MissingDependencyError: gRPC is not installed.
            PortInUseError, DeployError: the address cannot be had.
        """
        from pressroom.gateway.grpc import open_grpc

        return await open_grpc(
            self.dispatcher,
            self._routes,
            self.settings,
            self.control,
            host=host,
            port=port,
            ready=self._ready,
            refused=self._count,
            entrance=self._entrance,
            bound=bound,
        )

    @property
    def streamed(self) -> tuple[bytes, ...]:
        """Beginnings of the paths whose requests are handled before their body has come; see `Listener`."""
        found: tuple[bytes, ...] = STREAMED if self._hub is not None else ()
        if self._batches is not None:
            from pressroom.gateway.batches import door

            found += door.STREAMED
        return found

    def leave(self) -> None:
        """It is about to stop: let no batch keep it busy."""
        if self._batches is not None:
            self._batches.leave()

    def close(self) -> None:
        """Close the connections to the engines, and the hub."""
        self._house.close()
        self._house.waiting.close()
        self._upstream.close()
        if self._hub is not None:
            self._hub.close()
        if self._batches is not None:
            self._batches.close()

    # What the server calls.

    def handle(self, connection: HttpConnection, request: Request) -> None:
        """Answer a request."""
        request_id = self.ids.header()
        method = request.method
        posts = method == b"POST"
        headers = request.headers
        origin = headers.get(b"origin") if method in _CHANGING else None
        refusal = self._guard.refusal(headers.get(b"host"), origin)
        if refusal is not None:
            self._refuse(connection, request_id, refusal, request.path)
            return
        path = request.path
        endpoint = self._completions.get(path)
        if endpoint is not None:
            if posts:
                client = self._entrance.client(headers, request.memo)
                if isinstance(client, Problem):
                    self._count("", endpoint.name, client.status)
                    self._refuse(connection, request_id, client)
                else:
                    self._complete(connection, request, request_id, endpoint, client)
            else:
                self._refuse(connection, request_id, _not_allowed(request, "POST"))
            return
        if self._v2.takes(method, path):
            if self._v2.open(path):
                self._v2.handle(connection, request, request_id, None)
            elif (known := self._known(connection, request, request_id)) is not None:
                self._v2.handle(connection, request, request_id, known)
            return
        if self._batches is not None and self._batches.takes(method, path):
            if (known := self._known(connection, request, request_id)) is not None:
                self._batches.handle(connection, request, request_id, known.caller)
            return
        handler = self._reads.get(path)
        if handler is None and path.removeprefix(_PREFIX).startswith(_MODELS + b"/"):
            handler = self._model
        if handler is None and self._hub is not None and self._hub.takes(method, path):
            self._hub.handle(connection, request, request_id)
            return
        if handler is None:
            hint = "GET / lists what this gateway answers."
            message = f"Unknown request URL: {_text(request.method)} {_text(path)}. {hint}"
            self._refuse(connection, request_id, Problem(404, message, code="unknown_url"))
        elif method not in _READING:
            self._refuse(connection, request_id, _not_allowed(request, "GET, HEAD"))
        else:
            handler(connection, request, request_id)

    def _known(self, connection: HttpConnection, request: Request, request_id: bytes) -> Client | None:
        """Who sends a request; None where that was refused."""
        client = self._entrance.client(request.headers, request.memo)
        if isinstance(client, Problem):
            self._refuse(connection, request_id, client, request.path)
            return None
        return client

    def refuse(self, connection: HttpConnection, status: int, message: str, path: bytes) -> None:
        """Answer what never became a request."""
        request_id = self.ids.header()
        problem = Problem(status, message)
        if status >= 500:
            retry = 1 if status == 503 else None
            problem = server_error(status, message, code="gateway_error", retry_after_s=retry)
        self._refuse(connection, request_id, problem, path)

    def _complete(
        self, connection: HttpConnection, request: Request, request_id: bytes, endpoint: Endpoint, client: Client
    ) -> None:
        fields = (
            read(request.body, endpoint)
            if request.headers.get(b"content-encoding", b"identity") == b"identity"
            else Problem(415, "The body of a request must not be compressed.")
        )
        if isinstance(fields, Problem):
            self._count("", endpoint.name, fields.status)
            self._refuse(connection, request_id, fields)
            return
        receiver = HttpReceiver(connection, request_id)
        connection.hold(receiver)
        receiver.asked(
            self.dispatcher.ask_checked(
                fields,
                endpoint,
                receiver,
                door=endpoint.name,
                client=client,
                id=id_of(request_id),
                body=request.body,
            )
        )

    def _refuse(self, connection: HttpConnection, request_id: bytes, problem: Problem, path: bytes = b"") -> None:
        body = error(problem) if self._v2.takes(b"", path) else problem.body()
        connection.respond(problem.status, problem.headers() + request_id, body)

    # What it answers itself.

    def _index(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        paths = sorted(_text(path) for path in (*self._reads, *self._completions) if not path.startswith(_PREFIX))
        index: dict[str, Any] = {"name": "pressroom", "version": __version__, "paths": paths}
        index["v2"] = list(V2_PATHS)
        if self._batches is not None:
            from pressroom.gateway.batches import door

            index["batches"] = list(door.PATHS)
        if self._hub is not None:
            index["hub"] = list(PATHS)
        _json(connection, request_id, index)

    def _openapi(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        from pressroom.gateway.openapi import document

        connection.respond(200, _JSON + request_id, document())

    def _models(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        client = self._known(connection, request, request_id)
        if client is not None:
            seen = [_model(route) for route in self._routes.all() if client.caller.may_ask(route.model)]
            _json(connection, request_id, {"object": "list", "data": seen})

    def _model(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        name = request.decoded_path.removeprefix(_text(_PREFIX)).removeprefix(_text(_MODELS) + "/")
        client = self._known(connection, request, request_id)
        if client is None:
            return
        route = self._routes.get(name)
        if route is None or not client.caller.may_ask(name):
            self._refuse(connection, request_id, no_model(self._routes, name, client.caller))
        else:
            _json(connection, request_id, _model(route))

    def _live(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        _json(connection, request_id, {"status": "live"})

    def _readiness(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        ready = self._ready()
        models = {route.model: "ready" if route.ready else route.detail or "not ready" for route in self._routes.all()}
        body = orjson.dumps({"status": "ready" if ready else "not ready", "models": models})
        if ready:
            connection.respond(200, _JSON + request_id, body)
        else:
            connection.respond(503, _JSON + b"retry-after: %d\r\n" % _RETRY_STARTING_S + request_id, body)

    def _metrics(self, connection: HttpConnection, request: Request, request_id: bytes) -> None:
        # They name keys, teams and models: where keys are asked for, so are they here.
        if self._known(connection, request, request_id) is None:
            return
        for route in self._routes.all():
            self.metrics.of(route.model)  # a model nobody has asked yet has its zeros
        kind, text = self.metrics.render()
        connection.respond(200, b"content-type: %b\r\n" % kind.encode() + request_id, text)

    def _every_route_ready(self) -> bool:
        return all(route.available for route in self._routes.all())


def _model(route: Route) -> dict[str, Any]:
    return {
        "id": route.model,
        "object": "model",
        "created": route.created,
        "owned_by": "pressroom",
        "ref": route.ref,
        "digest": route.digest,
        "engine": route.engine,
        "context": route.context,
        "ready": route.available,
    }


def _json(connection: HttpConnection, request_id: bytes, value: dict[str, Any]) -> None:
    connection.respond(200, _JSON + request_id, orjson.dumps(value))


def _not_allowed(request: Request, allow: str) -> Problem:
    message = f"Not allowed to {_text(request.method)} on {_text(request.path)}. Allowed: {allow}."
    return Problem(405, message, code="method_not_supported", allow=allow)


def _text(raw: bytes) -> str:
    return raw[:200].decode(errors="replace")
