"""The KServe V2 door (Open Inference Protocol) over REST: which path is what, and what needs no engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import orjson

from pressroom import __version__
from pressroom.gateway._generation import no_model
from pressroom.gateway._v2_exchanges import JSON, Streamed, Whole, refuse
from pressroom.gateway.asking import Asker
from pressroom.gateway.control import ControlThreads, ModelControl, Servable, indexed, not_mounted
from pressroom.gateway.problems import Problem
from pressroom.gateway.protocols import v2
from pressroom.gateway.protocols._v2_models import EXTENSIONS, Face, Faces
from pressroom.gateway.protocols._v2_tensors import Invalid
from pressroom.gateway.protocols._v2_writing import Binary, GeneratedEvents, TensorEvents
from pressroom.gateway.routes import RouteTable

if TYPE_CHECKING:
    from pressroom.gateway._http_request import Request
    from pressroom.gateway._http_server import HttpConnection
    from pressroom.gateway.admission import Client

T = TypeVar("T")

_MODELS = b"/v2/models/"
_REPOSITORY = b"/v2/repository/"
_RETRY_S = 2
_VERBS = {b"infer": "v2.infer", b"generate": "v2.generate", b"generate_stream": "v2.generate_stream"}
_READING = (b"GET", b"HEAD")
#: What the gateway's own list of paths says of this door.
PATHS = (
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/config",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/generate",
    "/v2/models/{model}/generate_stream",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
)


class V2Door:
    """Answers everything under `/v2`. Belongs to one event loop.

    `ready` says whether everything that should answer does. `control` loads models and lets them go; without it such
    requests are refused. `refused` is told the model ('' where there is none of that name), the door and the status of
    each request for an answer that never reached the asker.
    """

    def __init__(
        self,
        asker: Asker,
        routes: RouteTable,
        *,
        ready: Callable[[], bool],
        control: ModelControl | None = None,
        refused: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self._asker = asker
        self._routes = routes
        self._ready = ready
        self._control = control
        self._refused = refused
        self._faces = Faces(routes)
        self._threads = ControlThreads()

    @staticmethod
    def takes(method: bytes, path: bytes) -> bool:
        """Whether a request is for this door."""
        return path.startswith(b"/v2") and (len(path) == 3 or path[3:4] == b"/")

    @staticmethod
    def open(path: bytes) -> bool:
        """Whether a path is for everybody: what says that the server lives needs no key."""
        return not path.startswith((_MODELS, _REPOSITORY))

    def handle(self, connection: HttpConnection, request: Request, request_id: bytes, client: Client | None) -> None:
        """Answer a request. `client` is None where nobody had to say who asks: the server's own paths."""
        path = request.path
        try:
            if client is not None and path.startswith(_MODELS):
                self._model(connection, request, request_id, path[len(_MODELS) :], client)
            elif client is not None and path.startswith(_REPOSITORY):
                self._repository(connection, request, request_id, path[len(_REPOSITORY) :], client)
            else:
                self._server(connection, request, request_id, path[3:].strip(b"/"))
        except Invalid as error:
            refuse(connection, request_id, Problem(error.status, error.message, allow=error.allow))

    # Of the server.

    def _server(self, connection: HttpConnection, request: Request, request_id: bytes, what: bytes) -> None:
        if what not in (b"", b"health/live", b"health/ready"):
            raise _unknown(request)
        _must(request, *_READING)
        if what == b"":
            _json(
                connection,
                request_id,
                {"name": "pressroom", "version": __version__, "extensions": list(EXTENSIONS)},
            )
            return
        # The text of the protocol and its examples disagree on the key; clients look at the status.
        if what == b"health/live" or self._ready():
            _json(connection, request_id, {"live": True, "ready": what == b"health/ready" or self._ready()})
            return
        body = orjson.dumps({"live": True, "ready": False})
        connection.respond(503, JSON + b"retry-after: %d\r\n" % _RETRY_S + request_id, body)

    # Of one model.

    def _model(
        self, connection: HttpConnection, request: Request, request_id: bytes, rest: bytes, client: Client
    ) -> None:
        name, _, last = rest.rpartition(b"/")
        door = _VERBS.get(last)
        if door is not None and name:
            _must(request, b"POST")
            self._answer(connection, request, request_id, name, last, door, client)
            return
        _must(request, *_READING)
        if last in (b"ready", b"config") and name and self._named(rest) is None:
            face = self._face(name, client)
            if last == b"config":
                _json(connection, request_id, face.config())
            else:
                self._model_ready(connection, request_id, face)
        else:
            self._metadata(connection, request_id, rest, client)

    def _metadata(self, connection: HttpConnection, request_id: bytes, rest: bytes, client: Client) -> None:
        control = self._control
        served = self._named(rest) or self._named(rest.rpartition(b"/versions/")[0])
        name = _decoded(rest)
        if served is not None or control is None or not client.caller.may_ask(name):
            _json(connection, request_id, self._face(rest, client).metadata())
            return
        # Not served now, but it may be one that could be.

        def described(found: Servable) -> dict[str, Any]:
            return Face(found.as_route()).metadata()

        self._call(connection, request_id, lambda: control.metadata(name), described)

    def _model_ready(self, connection: HttpConnection, request_id: bytes, face: Face) -> None:
        route = face.route
        if route.available:
            _json(connection, request_id, {"name": face.name, "ready": True})
            return
        detail = route.detail or "it is starting"
        body = {"name": face.name, "ready": False, "error": f"The model '{face.name}' is not ready: {detail}."}
        retry = b"retry-after: %d\r\n" % route.retry_after_s
        connection.respond(503, JSON + retry + request_id, orjson.dumps(body))

    def _answer(
        self,
        connection: HttpConnection,
        request: Request,
        request_id: bytes,
        name: bytes,
        verb: bytes,
        door: str,
        client: Client,
    ) -> None:
        """Read the request, and ask."""
        face: Face | None = None
        try:
            face = self._face(name, client)
            headers = request.headers
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise Invalid("The body of a request must not be compressed.", 415)
            exchange = self._exchange(connection, request, request_id, face, verb, client)
            exchange.start(self._asker, door)
        except Invalid as error:
            if self._refused is not None:
                self._refused(face.name if face is not None else "", door, error.status)
            raise

    def _exchange(
        self,
        connection: HttpConnection,
        request: Request,
        request_id: bytes,
        face: Face,
        verb: bytes,
        client: Client,
    ) -> Whole | Streamed:
        body, length = request.body, request.headers.get(b"inference-header-content-length")
        job = None if verb == b"infer" or length is not None else v2.read_generate(face, body)
        binary: Binary | None = None
        if job is None:
            job, binary = v2.read_infer(face, body, length)
        streams = verb == b"generate_stream"
        if job.stream is not None and job.stream is not streams:
            where = "generate_stream answers in pieces" if streams else f"{verb.decode()} answers in one piece"
            raise Invalid(f"'stream' is {str(job.stream).lower()}, but {where}. Leave it out.")
        if not streams:
            return Whole(connection, request_id, client, job, binary)
        events = GeneratedEvents(job) if binary is None else TensorEvents(job, binary)
        return Streamed(connection, request_id, client, job, events)

    def _face(self, path: bytes, client: Client) -> Face:
        """The model of a path, which may have a version after the name.

        Raises:
            Invalid: there is none, or not in this version.
        """
        caller = client.caller
        found = self._named(path)
        if found is not None and caller.may_ask(found.name):
            return found
        name, _, version = path.rpartition(b"/versions/")
        if name and found is None:
            found = self._named(name)
            if found is not None and caller.may_ask(found.name):
                found.check_version(_decoded(version))
                return found
        missing = _decoded(name or path)
        raise Invalid(no_model(self._routes, missing, caller).message, 404)

    def _named(self, path: bytes) -> Face | None:
        return self._faces.of(_decoded(path))

    # Of the repository.

    def _repository(
        self, connection: HttpConnection, request: Request, request_id: bytes, rest: bytes, client: Client
    ) -> None:
        name, _, verb = rest.removeprefix(b"models/").rpartition(b"/")
        if rest == b"index":
            _must(request, b"POST", *_READING)
            only_ready = _wants_ready(request.body)
            if self._control is None:
                _json(connection, request_id, _listed(indexed(self._routes), client, only_ready=only_ready))
            else:
                self._call(
                    connection,
                    request_id,
                    self._control.index,
                    lambda found: _listed(found, client, only_ready=only_ready),
                )
            return
        if not rest.startswith(b"models/") or verb not in (b"load", b"unload") or not name:
            raise _unknown(request)
        _must(request, b"POST")
        if not client.caller.admin:
            raise Invalid(f"A key with the right 'admin' may {verb.decode()} models; this one may not.", 403)
        _check_no_overrides(request.body)
        control = self._control
        if control is None:
            raise Invalid(not_mounted(verb.decode()))
        model = _decoded(name)
        call = control.load if verb == b"load" else control.unload
        self._call(connection, request_id, lambda: call(model), lambda _: {})

    def _call(
        self, connection: HttpConnection, request_id: bytes, call: Callable[[], T], shown: Callable[[T], Any]
    ) -> None:
        """Answer with what a call gives that may block."""
        waiting = _Waiting(connection, request_id)
        connection.hold(waiting)

        def done(found: T | Problem) -> None:
            if isinstance(found, Problem):
                waiting.refuse(found)
            else:
                waiting.respond(orjson.dumps(shown(found)))

        self._threads.run(call, done)


class _Waiting:
    """A client that waits for a call to `ModelControl`. The call goes on when the client leaves."""

    __slots__ = ("_connection", "_id", "_over")

    def __init__(self, connection: HttpConnection, request_id: bytes) -> None:
        self._connection = connection
        self._id = request_id
        self._over = False

    def respond(self, body: bytes) -> None:
        if not self._over:
            self._over = True
            self._connection.respond(200, JSON + self._id, body)

    def refuse(self, problem: Problem) -> None:
        if not self._over:
            self._over = True
            refuse(self._connection, self._id, problem)

    def client_gone(self) -> None:
        self._over = True

    def client_slow(self) -> None:
        """Its answer is one short piece."""

    def client_ready(self) -> None:
        """Nothing was held back."""

    def shut_down(self) -> None:
        self.refuse(Problem(503, "The gateway is stopping."))


def _listed(found: list[Servable], client: Client, *, only_ready: bool) -> list[dict[str, str]]:
    seen = [each for each in found if client.caller.may_ask(each.name)]
    return [each.row() for each in seen if each.ready or not only_ready]


def _wants_ready(body: bytes) -> bool:
    """Whether an index should list only what is ready."""
    given = v2.read_json(body) if body else {}
    ready = given.get("ready", False)
    if not given.keys() <= {"ready"} or type(ready) is not bool:
        raise Invalid('An index is asked for with an empty body, or with {"ready": true} for what is ready.')
    return ready


def _check_no_overrides(body: bytes) -> None:
    """Refuse a load that brings its own configuration: it would not be followed."""
    given = v2.read_json(body) if body else {}
    parameters = given.get("parameters", {})
    if not given.keys() <= {"parameters"} or type(parameters) is not dict:
        raise Invalid("A load or unload takes an empty body, or one with 'parameters' (an object).")
    for name, value in parameters.items():
        if name != "unload_dependents":
            message = f"The parameter '{name[:80]}' of a load or unload is not understood"
            raise Invalid(f"{message}; a model is served as deployed.")
        if value is not False:
            raise Invalid("'unload_dependents' has nothing to unload: models here do not depend on each other.")


def _must(request: Request, *methods: bytes) -> None:
    if request.method not in methods:
        allowed = b", ".join(methods).decode()
        raise Invalid(
            f"Not allowed to {_shown(request.method)} on {_shown(request.path)}. Allowed: {allowed}.",
            405,
            allow=allowed,
        )


def _unknown(request: Request) -> Invalid:
    return Invalid(f"There is no {_shown(request.path)} here. GET / lists what this gateway answers.", 404)


def _json(connection: HttpConnection, request_id: bytes, value: Any) -> None:
    connection.respond(200, JSON + request_id, orjson.dumps(value))


def _decoded(raw: bytes) -> str:
    text = raw.decode(errors="replace")
    return unquote(text) if "%" in text else text


def _shown(raw: bytes) -> str:
    return raw[:200].decode(errors="replace")
