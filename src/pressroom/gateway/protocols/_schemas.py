"""The JSON schemas of the fields whose checks are written out, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_TOKENS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "minItems": 1,
}
_FUNCTION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
        "description": {"type": "string"},
        "parameters": {"type": "object", "description": "A JSON schema."},
        "strict": {"type": "boolean"},
    },
    "required": ["name"],
}
_CALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": _TEXT, "arguments": _TEXT},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
_PART: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
MESSAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}]},
            "name": _TEXT,
            "tool_calls": {"type": "array", "items": _CALL},
            "tool_call_id": _TEXT,
            "reasoning": _TEXT,
            "reasoning_content": _TEXT,
        },
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}
PROMPT: dict[str, Any] = {
    "anyOf": [
        _TEXT,
        _TOKENS,
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 128},
        {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": 128},
    ]
}
_SAID: dict[str, Any] = {"type": "string", "minLength": 1}
INPUT: dict[str, Any] = {
    "anyOf": [
        _SAID,
        _TOKENS,
        {"type": "array", "items": _SAID, "minItems": 1, "maxItems": 2048},
        {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": 2048},
    ]
}
TOOLS: dict[str, Any] = {
    "type": "array",
    "maxItems": 128,
    "items": {
        "type": "object",
        "properties": {"type": {"const": "function"}, "function": _FUNCTION},
        "required": ["type", "function"],
    },
}
TOOL_CHOICE: dict[str, Any] = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "properties": {"name": _TEXT}, "required": ["name"]},
            },
            "required": ["type", "function"],
        },
    ]
}
STREAM_OPTIONS: dict[str, Any] = {
    "type": "object",
    "properties": {"include_usage": {"type": "boolean"}, "include_obfuscation": {"const": False}},
    "additionalProperties": False,
}
RESPONSE_FORMAT: dict[str, Any] = {
    "anyOf": [
        {"type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": {"name": _TEXT, "schema": {"type": "object"}, "strict": {"type": "boolean"}},
                    "required": ["schema"],
                },
            },
            "required": ["type", "json_schema"],
        },
    ]
}
LOGIT_BIAS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}
MODALITIES: dict[str, Any] = {"const": ["text"]}
ENCODING_FORMAT: dict[str, Any] = {"enum": ["float", "base64"]}
