"""The client of the checks: OpenAI's API, KServe V2 over REST and over gRPC, on one model."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_PATIENCE_S = 600.0


class Failed(Exception):
    """The answer is not what the protocol says."""


class Refused(Exception):
    """The gateway says that the engine of this model cannot do what was asked."""


@dataclass
class Said:
    """What came back, whichever the door: the text of the first choice, why it ended, and the tokens."""

    text: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, int]:
        return int(self.usage.get("prompt_tokens", -1)), int(self.usage.get("completion_tokens", -1))


class Door:
    """Asks `model` at `url`; `grpc` is the address of the gRPC door, '' where there is none, and `key` a secret that is
    sent along ('' for none)."""

    def __init__(self, url: str, model: str, *, grpc: str = "", key: str = "") -> None:
        self._authorization = {"authorization": f"Bearer {key}"} if key else {}
        self.url = url
        self.model = model
        self.grpc = grpc

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        status, data = self._send(path, body)
        return status, json.loads(data)

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The JSON of an answer that must be 200.

        Raises:
            Refused, Failed: it is not.
        """
        status, found = self.post(path, {"model": self.model, **body})
        _judge(status, found)
        return dict(found)

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream that ends as it must. Raises Refused, Failed."""
        status, data = self._send(path, {"model": self.model, **body, "stream": True})
        if status != 200:
            _judge(status, json.loads(data))
        events = list(_events(data))
        if not events or events[-1] != "[DONE]":
            raise Failed("the stream does not end with [DONE]")
        parsed = [json.loads(event) for event in events[:-1]]
        for event in parsed:
            if "error" in event:
                raise Failed(f"an error within the stream: {event['error']}")
        return parsed

    def embeds(self) -> bool:
        """Whether the model gives embeddings."""
        return self.post("/v1/embeddings", {"model": self.model, "input": "x"})[0] == 200

    # The same question through every door.

    def chat(self, text: str, *, stream: bool = False, **body: Any) -> Said:
        asked = {"messages": [{"role": "user", "content": text}], **body}
        return self._openai("/v1/chat/completions", asked, stream=stream)

    def complete(self, text: str, *, stream: bool = False, **body: Any) -> Said:
        return self._openai("/v1/completions", {"prompt": text, **body}, stream=stream)

    def generate(self, text: str, *, stream: bool = False, **parameters: Any) -> Said:
        """KServe V2 over REST."""
        path = f"/v2/models/{self.model}/generate{'_stream' if stream else ''}"
        status, data = self._send(path, {"text_input": text, "parameters": parameters})
        if status != 200:
            raise Failed(f"{path} answered {status}: {data[:300].decode(errors='replace')}")
        events = [json.loads(event) for event in _events(data)] if stream else [json.loads(data)]
        said = Said(events=events)
        for event in events:
            said.text += event["text_output"]
            said.finish = event.get("finish_reason") or said.finish
            said.usage = event.get("usage") or said.usage
        return said

    def infer(self, text: str, *, stream: bool = False, **parameters: Any) -> Said:
        """KServe V2 over gRPC."""
        if not self.grpc:
            raise Refused("there is no gRPC door")
        import grpc  # type: ignore[import-untyped]

        from pressroom.gateway.grpc import inference_pb2 as pb

        request = pb.ModelInferRequest(model_name=self.model)
        tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(text.encode())
        for name, value in parameters.items():
            kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
            setattr(request.parameters[name], kind, value)
        said = Said()
        with grpc.insecure_channel(self.grpc) as channel:
            if stream:
                call = channel.stream_stream(
                    "/inference.GRPCInferenceService/ModelStreamInfer",
                    request_serializer=pb.ModelInferRequest.SerializeToString,
                    response_deserializer=pb.ModelStreamInferResponse.FromString,
                )
                for response in call(iter([request]), timeout=_PATIENCE_S, metadata=list(self._authorization.items())):
                    if response.error_message:
                        raise Failed(f"ModelStreamInfer: {response.error_message}")
                    _take(said, response.infer_response)
            else:
                unary = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelInfer",
                    request_serializer=pb.ModelInferRequest.SerializeToString,
                    response_deserializer=pb.ModelInferResponse.FromString,
                )
                _take(said, unary(request, timeout=_PATIENCE_S, metadata=list(self._authorization.items())))
        return said

    def _openai(self, path: str, body: dict[str, Any], *, stream: bool) -> Said:
        if not stream:
            found = self.ask(path, **body)
            choice = found["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            return Said(text or "", choice["finish_reason"], found.get("usage") or {}, [found])
        events = self.stream(path, **{"stream_options": {"include_usage": True}, **body})
        said = Said(events=events)
        for event in events:
            for choice in event.get("choices") or ():
                if choice.get("index", 0) == 0:
                    said.text += (choice["delta"].get("content") or "") if "delta" in choice else choice["text"]
                    said.finish = choice.get("finish_reason") or said.finish
            said.usage = event.get("usage") or said.usage
        return said

    def _send(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE_S)
        try:
            connection.request(
                "POST", path, json.dumps(body), {"Content-Type": "application/json", **self._authorization}
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _judge(status: int, found: Any) -> None:
    if status == 200:
        return
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict) or not error.get("message"):
        raise Failed(f"status {status} without an error in OpenAI's shape: {str(found)[:300]}")
    if status == 400 and error.get("code") == "unsupported_parameter":
        raise Refused(error["message"])
    raise Failed(f"status {status}: {error['message']}")


def _events(data: bytes) -> Iterator[str]:
    for event in data.decode().split("\n\n"):
        if event.startswith("data:"):
            yield event[5:].strip()


def _take(said: Said, response: Any) -> None:
    for number, output in enumerate(response.outputs):
        raw = response.raw_output_contents[number] if response.raw_output_contents else None
        if output.datatype == "BYTES":
            text = (raw[4:] if raw is not None else b"".join(output.contents.bytes_contents)).decode()
            if output.name == "text_output":
                said.text += text
            elif output.name == "finish_reason":
                said.finish = text or said.finish
        elif output.datatype == "INT64":
            values = struct.unpack(f"<{len(raw) // 8}q", raw) if raw is not None else output.contents.int64_contents
            if values[0]:  # the pieces of a stream before its last have none yet
                said.usage[output.name] = values[0]
