"""The OpenAPI document of the gateway, made from the same tables that requests are checked with."""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson

from pressroom import __version__
from pressroom.gateway.protocols import _checks as check
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, EMBEDDING, Endpoint

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_JSON = "application/json"

# One event of a stream, as readers of OpenAPI documents take it apart.
_EVENT: dict[str, Any] = {"type": "object", "properties": {"data": _TEXT}, "required": ["data"]}
_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_V2_ERROR: dict[str, Any] = {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]}
_USAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": _COUNT}},
    },
    "required": ["prompt_tokens", "total_tokens"],
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "datatype": _TEXT,
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
    "required": ["name", "datatype", "shape"],
}
_STATUSES = {
    "400": "A field is wrong, or the engine of this model cannot do it.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "429": "Too many requests; with Retry-After.",
    "502": "The engine failed.",
    "503": "The model is not ready; with Retry-After.",
    "504": "The engine was too slow.",
}


@cache
def document() -> bytes:
    """The document as JSON."""
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Pressroom",
                "version": __version__,
                "description": "OpenAI's API and KServe V2 in front of every deployment.",
            },
            "paths": {**_openai_paths(), **_v2_paths(), **_own_paths()},
            "components": {"schemas": {"Error": _ERROR, "V2Error": _V2_ERROR, "Usage": _USAGE, "Tensor": _TENSOR}},
        }
    )


def _openai_paths() -> dict[str, Any]:
    paths: dict[str, Any] = {
        endpoint.path.decode(): {
            "post": {
                "operationId": operation,
                "summary": summary,
                "requestBody": _body(_fields(endpoint)),
                "responses": _responses(answer, "Error", streams=endpoint is not EMBEDDING),
            }
        }
        for endpoint, operation, summary, answer in (
            (CHAT, "createChatCompletion", "Answer a conversation", _answer("chat.completion", "message")),
            (COMPLETION, "createCompletion", "Continue a text", _answer("text_completion", "text")),
            (EMBEDDING, "createEmbedding", "Vectors of texts", _embeddings()),
        )
    }
    model = {
        "type": "object",
        "properties": {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT},
        "required": ["id", "object", "created", "owned_by"],
    }
    listed = {
        "type": "object",
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": model}},
        "required": ["object", "data"],
    }
    paths["/v1/models"] = {"get": _reading("listModels", "The deployments", listed)}
    paths["/v1/models/{model}"] = {
        "parameters": [_parameter("model")],
        "get": _reading("retrieveModel", "One deployment", model, "404"),
    }
    return paths


def _v2_paths() -> dict[str, Any]:
    tensors = {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}}
    inferred = {
        "type": "object",
        "properties": {"model_name": _TEXT, "outputs": tensors},
        "required": ["model_name", "outputs"],
    }
    infer = {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "inputs": {**tensors, "minItems": 1},
            "outputs": {"type": "array", "items": {"type": "object", "properties": {"name": _TEXT}}},
            "parameters": {"type": "object"},
        },
        "required": ["inputs"],
    }
    generate = {
        "type": "object",
        "properties": {"text_input": _TEXT, "parameters": {"type": "object"}},
        "required": ["text_input"],
    }
    generated = {
        "type": "object",
        "properties": {"text_output": _TEXT, "model_name": _TEXT},
        "required": ["text_output", "model_name"],
    }
    metadata = {
        "type": "object",
        "properties": {"name": _TEXT, "platform": _TEXT, "inputs": {"type": "array"}, "outputs": {"type": "array"}},
        "required": ["name", "inputs", "outputs"],
    }
    named = [_parameter("model")]
    posts = (
        ("infer", "modelInfer", "Tensors in, tensors out", infer, inferred, False),
        ("generate", "modelGenerate", "Text in, text out", generate, generated, False),
        ("generate_stream", "modelGenerateStream", "The same as it is written", generate, generated, True),
    )
    return {
        "/v2": {"get": _reading("serverMetadata", "What this server is", {"type": "object"})},
        "/v2/health/live": {"get": _reading("serverLive", "Whether the server answers", {"type": "object"})},
        "/v2/health/ready": {"get": _reading("serverReady", "Whether all models answer", {"type": "object"}, "503")},
        "/v2/models/{model}": {
            "parameters": named,
            "get": _reading("modelMetadata", "What a model takes and gives", metadata, "404", error="V2Error"),
        },
        "/v2/models/{model}/ready": {
            "parameters": named,
            "get": _reading("modelReady", "Whether it answers", {"type": "object"}, "404", "503", error="V2Error"),
        },
        **{
            f"/v2/models/{{model}}/{path}": {
                "parameters": named,
                "post": {
                    "operationId": operation,
                    "summary": summary,
                    "requestBody": _body(asked),
                    "responses": _responses(answer, "V2Error", streams=streams, whole=not streams),
                },
            }
            for path, operation, summary, asked, answer, streams in posts
        },
    }


def _own_paths() -> dict[str, Any]:
    live = {"type": "object", "properties": {"status": _TEXT}, "required": ["status"]}
    return {
        "/health/live": {"get": _reading("live", "Whether the process answers", live)},
        "/health/ready": {"get": _reading("ready", "Whether every deployment answers", live, "503", plain=True)},
    }


def _fields(endpoint: Endpoint) -> dict[str, Any]:
    """The schema of a request: the fields that are checked, and no others."""
    properties = {name: check.schema_of(each) for name, each in sorted(endpoint.fields.items())}
    properties["model"] = {"type": "string", "minLength": 1}
    properties[endpoint.conversation] = check.schema_of(endpoint.fields[endpoint.conversation])
    return {
        "type": "object",
        "properties": properties,
        "required": ["model", endpoint.conversation],
        "additionalProperties": False,
    }


def _answer(kind: str, said: str) -> dict[str, Any]:
    choice = {
        "type": "object",
        "properties": {"index": _COUNT, "finish_reason": _TEXT},
        "required": ["index", "finish_reason", said],
    }
    return {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _TEXT,
            "choices": {"type": "array", "items": choice, "minItems": 1},
            "usage": {"$ref": "#/components/schemas/Usage"},
        },
        "required": ["id", "object", "created", "model", "choices", "usage"],
    }


def _embeddings() -> dict[str, Any]:
    vector = {"anyOf": [{"type": "array", "items": {"type": "number"}}, _TEXT]}
    entry = {
        "type": "object",
        "properties": {"index": _COUNT, "object": {"const": "embedding"}, "embedding": vector},
        "required": ["index", "embedding"],
    }
    return {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": entry},
            "model": _TEXT,
            "usage": {"$ref": "#/components/schemas/Usage"},
        },
        "required": ["object", "data", "usage"],
    }


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {_JSON: {"schema": schema}}}


def _responses(answer: dict[str, Any], error: str, *, streams: bool, whole: bool = True) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": answer}} if whole else {}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    found = {"200": {"description": "The answer.", "content": content}}
    for status, description in _STATUSES.items():
        found[status] = {"description": description, "content": _error(error)}
    return found


def _reading(
    operation: str,
    summary: str,
    schema: dict[str, Any],
    *statuses: str,
    error: str = "Error",
    plain: bool = False,
) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "The answer.", "content": {_JSON: {"schema": schema}}}}
    for status in statuses:
        content = {_JSON: {"schema": {"type": "object"}}} if plain or status == "503" else _error(error)
        found[status] = {"description": _STATUSES.get(status, ""), "content": content}
    return {"operationId": operation, "summary": summary, "responses": found}


def _error(name: str) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
