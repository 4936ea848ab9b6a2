"""The same question in KServe's V2 protocol, over REST and over gRPC: one BYTES tensor `text_input` of shape [1]."""

from __future__ import annotations

import json
import urllib.request

from _gateway_running import key

PATH = "/inference.GRPCInferenceService/ModelInfer"


def rest(model: str, text: str) -> bytes:
    """A whole HTTP request."""
    tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + f"Content-Type: application/json\r\nAuthorization: Bearer {key()}\r\n\r\n".encode() + body


def message(model: str, text: str) -> bytes:
    """A ModelInferRequest with the text in its typed contents: MLServer is faster with these than with raw ones."""
    contents = _field(8, text.encode())
    tensor = _field(1, b"text_input") + _field(2, b"BYTES") + _field(3, b"\x01") + _field(5, contents)
    return _field(1, model.encode()) + _field(5, tensor)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def says(port: int, request: bytes, text: str, *, grpc: bool) -> str:
    """Ask once and see that the answer holds the text; what is wrong otherwise."""
    try:
        answer = _call(port, request) if grpc else _post(port, request)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if text.encode() in answer else f"it answered {answer[:200]!r}"


def _post(port: int, request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    url = f"http://127.0.0.1:{port}{first.split()[1]}"
    asked = urllib.request.Request(url, data=body, headers=dict(line.split(": ", 1) for line in lines))
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return bytes(answer.read())


def _call(port: int, request: bytes) -> bytes:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            metadata = (("authorization", f"Bearer {key()}"),)
            return bytes(channel.unary_unary(PATH)(request, timeout=60, metadata=metadata))
        except grpc.RpcError as error:
            raise ValueError(f"{error.code().name}: {error.details()}") from error
