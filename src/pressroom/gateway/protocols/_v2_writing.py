"""KServe V2 over REST: answers to `infer`, `generate` and `generate_stream`."""

from __future__ import annotations

import struct
from typing import Any, Protocol

import orjson

from pressroom.gateway import _sse
from pressroom.gateway.protocols._v2_answers import Answer, Embeddings
from pressroom.gateway.protocols._v2_models import TEXT_OUTPUTS
from pressroom.gateway.protocols._v2_requests import Job
from pressroom.gateway.protocols._v2_tensors import Invalid, packed_texts


def _one_answer(described: bytes, text: bytes, number: bytes) -> bytes:
    """What `written` gives for one text and all outputs, with places for what differs."""
    place = {"BYTES": described % text, "INT64": described % number}
    outputs = b",".join(
        b'{"name":"%b","datatype":"%b","shape":[1],%b}' % (name.encode(), kind.encode(), place[kind])
        for name, kind in TEXT_OUTPUTS.items()
    )
    return b'{"model_name":%b,"model_version":"%b"%b,"outputs":[' + outputs + b"]}"


_ONE_JSON = _one_answer(b'"data":[%b]', b"%b", b"%d")
_ONE_BINARY = _one_answer(b'"parameters":{"binary_data_size":%b}', b"%d", b"8")
_NUMBERS = struct.Struct("<3q")


class Binary:
    """Which outputs go out in binary form: all, or those named."""

    __slots__ = ("every", "not_these", "these")

    def __init__(self) -> None:
        self.every = False
        self.these: set[str] = set()
        self.not_these: set[str] = set()

    @property
    def none(self) -> bool:
        return not self.every and not self.these

    def has(self, name: str) -> bool:
        return name in self.these or (self.every and name not in self.not_these)


def rendered(job: Job, answers: list[Answer] | Embeddings, binary: Binary) -> tuple[bytes, list[bytes]]:
    """The JSON of an answer in tensors, and the data that follow it in binary."""
    if job.outputs is None and job.shape == [1] and not isinstance(answers, Embeddings):
        if binary.none:
            return _one_json(job, answers[0]), []
        if binary.every and not binary.not_these:
            return _one_binary(job, answers[0])
    head, follows = written(job, answers, binary)
    return orjson.dumps(head), follows


def _one_json(job: Job, answer: Answer) -> bytes:
    return _ONE_JSON % (
        orjson.dumps(job.face.name),
        job.face.version.encode(),
        b"" if job.id is None else b',"id":%b' % orjson.dumps(job.id),
        orjson.dumps(answer.text),
        orjson.dumps(answer.finish_reason),
        *answer.tokens(),
    )


def _one_binary(job: Job, answer: Answer) -> tuple[bytes, list[bytes]]:
    text, reason = packed_texts([answer.text]), packed_texts([answer.finish_reason])
    id = b"" if job.id is None else b',"id":%b' % orjson.dumps(job.id)
    head = _ONE_BINARY % (orjson.dumps(job.face.name), job.face.version.encode(), id, len(text), len(reason))
    return head, [text, reason, _NUMBERS.pack(*answer.tokens())]


def written(job: Job, answers: list[Answer] | Embeddings, binary: Binary) -> tuple[dict[str, Any], list[bytes]]:
    """As `rendered`, before the JSON is made."""
    outputs, follows = [], []
    for name in job.names:
        kind = job.face.outputs[name]
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": job.shape}
        if isinstance(answers, Embeddings):
            output["shape"] = [*job.shape, answers.width] if name == "embedding" else [1]
        if binary.has(name):
            packed = packed_output(name, kind, answers)
            output["parameters"] = {"binary_data_size": len(packed)}
            follows.append(packed)
        elif isinstance(answers, Embeddings):
            output["data"] = answers.values() if name == "embedding" else [answers.prompt_tokens]
        else:
            output["data"] = [each.value(name) for each in answers]
        outputs.append(output)
    head: dict[str, Any] = {"model_name": job.face.name, "model_version": job.face.version}
    if job.id is not None:
        head["id"] = job.id
    head["outputs"] = outputs
    return head, follows


def packed_output(name: str, kind: str, answers: list[Answer] | Embeddings) -> bytes:
    """An output in its binary form."""
    if isinstance(answers, Embeddings):
        return answers.rows if name == "embedding" else answers.prompt_tokens.to_bytes(8, "little")
    if kind == "BYTES":
        return packed_texts([each.value(name) for each in answers])
    return b"".join([each.value(name).to_bytes(8, "little") for each in answers])


def generated(job: Job, answer: Answer) -> dict[str, Any]:
    """An answer of `generate` in its own form."""
    found: dict[str, Any] = {
        "text_output": answer.text,
        "model_name": job.face.name,
        "model_version": job.face.version,
    }
    if job.id is not None:
        found["id"] = job.id
    found["finish_reason"] = answer.finish_reason
    found["usage"] = answer.usage
    return found


class Events(Protocol):
    """The events of a stream: what goes out for a piece of text, and at the end."""

    def piece(self, text: str) -> bytes: ...

    def last(self, answer: Answer) -> bytes: ...


class GeneratedEvents:
    """Events of `generate_stream` in its own form."""

    def __init__(self, job: Job) -> None:
        self._job = job
        rest = {"model_name": job.face.name, "model_version": job.face.version}
        if job.id is not None:
            rest["id"] = job.id
        # The same for every piece, so made once.
        self._rest = b"," + orjson.dumps({**rest, "done": False})[1:] + b"\n\n"

    def piece(self, text: str) -> bytes:
        return b'data: {"text_output":' + orjson.dumps(text) + self._rest

    def last(self, answer: Answer) -> bytes:
        return _sse.event({**generated(self._job, answer), "done": True})


class TensorEvents:
    """Events of `generate_stream` in tensors: the text as it comes, everything else with the last one."""

    def __init__(self, job: Job, binary: Binary) -> None:
        if not binary.none:
            raise Invalid("A stream of events is text: its outputs cannot be binary.")
        self._job = job
        self._binary = binary
        self._wants_text = "text_output" in job.names

    def piece(self, text: str) -> bytes:
        if not self._wants_text:
            return b""
        head, _ = written(self._job, [Answer(text, "", {})], self._binary)
        head["outputs"] = [each for each in head["outputs"] if each["name"] == "text_output"]
        return _sse.event(head)

    def last(self, answer: Answer) -> bytes:
        return _sse.event(written(self._job, [answer], self._binary)[0])
