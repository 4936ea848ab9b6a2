"""A model as KServe V2 describes it: name, version, platform, and the tensors it takes and gives."""

from __future__ import annotations

from typing import Any

from pressroom.gateway._saying import said
from pressroom.gateway.protocols._v2_tensors import Invalid
from pressroom.gateway.routes import Route, RouteTable, Served

#: The outputs of a text model, in the order they are answered in.
TEXT_OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "prompt_tokens": "INT64",
    "completion_tokens": "INT64",
    "cached_tokens": "INT64",
}
#: The outputs of a model that embeds.
EMBEDDING_OUTPUTS = {"embedding": "FP32", "prompt_tokens": "INT64"}
#: Names under which the text may come; the first is the one in the metadata.
TEXT_INPUTS = ("text_input", "prompt", "text")
#: Inputs of a text model beside its text: each is also a parameter of the request under the same name.
OPTIONAL_INPUTS = {
    "max_tokens": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "seed": "INT64",
    "frequency_penalty": "FP32",
    "presence_penalty": "FP32",
    "stop": "BYTES",
    "chat": "BOOL",
    "stream": "BOOL",
    "sampling_parameters": "BYTES",
}
#: What is spoken here beside the protocol itself.
EXTENSIONS = ("generate", "binary_tensor_data", "model_repository", "model_repository(unload_dependents)", "parameters")


class Face:
    """What of a route this protocol needs: made once a route."""

    __slots__ = ("embeds", "headers", "name", "only_chats", "outputs", "route", "version", "wire")

    def __init__(self, route: Route) -> None:
        can = route.capabilities
        self.route = route
        self.name = route.model
        self.version = version_of(route.ref)
        self.embeds = can.embeddings and not (can.completions or can.chat)
        self.only_chats = can.chat and not can.completions
        self.outputs = EMBEDDING_OUTPUTS if self.embeds else TEXT_OUTPUTS
        #: Name and version in the bytes of another protocol, made by the door that speaks it.
        self.wire = b""
        #: The header line that says which version answered.
        self.headers = said(route.digest, route.branch, route.cache)

    def check_version(self, version: str) -> None:
        """Raise Invalid where `version` is asked for and is not this one."""
        if version and version != self.version:
            raise Invalid(f"The model '{self.name}' has no version '{version[:40]}' here; it has '{self.version}'.")

    def metadata(self) -> dict[str, Any]:
        """The answer to a request for metadata."""
        shape = [-1, -1] if self.embeds else [-1]
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": self.platform,
            "inputs": [{"name": TEXT_INPUTS[0], "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": name, "datatype": kind, "shape": shape if name == "embedding" else [-1]}
                for name, kind in self.outputs.items()
            ],
        }

    def config(self) -> dict[str, Any]:
        """The answer to a request for the configuration, in Triton's words: it is where inputs can be optional."""
        required = [{"name": TEXT_INPUTS[0], "data_type": "TYPE_STRING", "dims": [-1]}]
        optional = [
            {"name": name, "data_type": data_type(kind), "dims": [-1], "optional": True}
            for name, kind in OPTIONAL_INPUTS.items()
        ]
        outputs = self.metadata()["outputs"]
        return {
            "name": self.name,
            "platform": self.platform,
            "backend": self.route.engine,
            "max_batch_size": 0,
            "input": required if self.embeds else required + optional,
            "output": [
                {"name": each["name"], "data_type": data_type(each["datatype"]), "dims": each["shape"]}
                for each in outputs
            ],
            "model_transaction_policy": {"decoupled": not self.embeds},
        }

    @property
    def platform(self) -> str:
        return f"pressroom_{self.route.engine}" if self.route.engine else "pressroom"


class Faces:
    """The faces of the routes of a table."""

    def __init__(self, routes: RouteTable) -> None:
        self._routes = routes
        self._known: dict[str, tuple[Served, Face]] = {}

    def of(self, name: str) -> Face | None:
        """The model called `name`, or None."""
        served = self._routes.served(name)
        if served is None:
            self._known.pop(name, None)
            return None
        known = self._known.get(name)
        if known is not None and known[0] is served:
            return known[1]
        face = Face(served.route)
        self._known[name] = (served, face)
        return face


def version_of(ref: str) -> str:
    """The version in a reference, `3` of `smollm2:3`; a model without one has the version 1."""
    number = ref.rpartition(":")[2]
    return number if number.isascii() and number.isdigit() else "1"


def data_type(datatype: str) -> str:
    """The name of a datatype in a configuration."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
