"""Answers as protobuf bytes, written directly.

Building a message object and serializing it costs several times what the few fields of an answer need. The tests read
what is written here with the real messages.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pressroom.gateway.protocols._v2_answers import Answer, Embeddings
from pressroom.gateway.protocols._v2_models import TEXT_OUTPUTS, Face
from pressroom.gateway.protocols._v2_requests import Job
from pressroom.gateway.protocols._v2_writing import packed_output

if TYPE_CHECKING:
    from pressroom.gateway.routes import Route

# Field numbers of the published messages; all of these fields are length-delimited.
_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS, _OUTPUTS, _RAW_OUTPUTS = 1, 2, 3, 4, 5, 6
_NAME, _DATATYPE, _SHAPE, _CONTENTS = 1, 2, 3, 5
_INT64_CONTENTS, _FP32_CONTENTS, _BYTES_CONTENTS = 3, 6, 8
_FIELDS = {"BYTES": _BYTES_CONTENTS, "INT64": _INT64_CONTENTS}
_ERROR_MESSAGE, _INFER_RESPONSE = 1, 2


def varint(value: int) -> bytes:
    """An unsigned number."""
    if value < 0x80:
        return bytes((value,))
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field; numbers up to 15."""
    return bytes((number << 3 | 2,)) + varint(len(data)) + data


def _flag(name: bytes, value: bool) -> bytes:
    """An entry of the response's parameters."""
    return field(_PARAMETERS, field(1, name) + field(2, bytes((1 << 3, value))))


def _source(route: Route | None) -> bytes:
    """Which of several routes answered, and whether the answer was kept from before, as parameters."""
    if route is None or not (route.branch or route.cache):
        return b""
    named = ((b"pressroom-route", route.branch), (b"pressroom-cache", route.cache))
    return b"".join(
        field(_PARAMETERS, field(1, name) + field(2, field(3, text.encode()))) for name, text in named if text
    )


_FINAL = {value: _flag(b"triton_final_response", value) for value in (False, True)}


def response(job: Job, answers: list[Answer] | Embeddings, *, raw: bool, route: Route | None = None) -> bytes:
    """A ModelInferResponse with the outputs the job wants, from `route`; `raw` puts their data into
    raw_output_contents."""
    head = _head(job) + _source(route)
    if job.outputs is None and job.shape == [1] and not isinstance(answers, Embeddings):
        return head + (_one_raw(answers[0]) if raw else _one_typed(answers[0]))
    return head + _outputs(job, job.names, answers, raw=raw)


def piece(job: Job, text: str, *, raw: bool) -> bytes:
    """A ModelStreamInferResponse in the middle of an answer: a piece of its text."""
    outputs = _outputs(job, ["text_output"], [Answer(text, "", {})], raw=raw)
    return field(_INFER_RESPONSE, _head(job) + _FINAL[False] + outputs)


def last(job: Job, answers: list[Answer] | Embeddings, *, raw: bool, route: Route | None = None) -> bytes:
    """A ModelStreamInferResponse that ends an answer."""
    head = _head(job) + _FINAL[True] + _source(route)
    return field(_INFER_RESPONSE, head + _outputs(job, job.names, answers, raw=raw))


def refusal(message: str, id: str, *, face: Face | None = None) -> bytes:
    """A ModelStreamInferResponse that says what went wrong with the request `id`."""
    head = field(_ID, id.encode()) if id else b""
    if face is not None:
        head = face_head(face) + head
    return field(_ERROR_MESSAGE, message.encode()) + field(_INFER_RESPONSE, head + _FINAL[True])


def face_head(face: Face) -> bytes:
    """Name and version of the model that answers."""
    if not face.wire:
        face.wire = field(_MODEL_NAME, face.name.encode()) + field(_MODEL_VERSION, face.version.encode())
    return face.wire


def _head(job: Job) -> bytes:
    head = face_head(job.face)
    return head + field(_ID, job.id.encode()) if job.id else head


def _outputs(job: Job, names: list[str], answers: list[Answer] | Embeddings, *, raw: bool) -> bytes:
    described, follows = [], []
    for name in names:
        kind = job.face.outputs[name]
        shape = tuple(job.shape)
        if isinstance(answers, Embeddings):
            shape = (*shape, answers.width) if name == "embedding" else (1,)
        output = _described(name, kind, shape)
        if raw:
            follows.append(field(_RAW_OUTPUTS, packed_output(name, kind, answers)))
        else:
            output += field(_CONTENTS, _contents(name, kind, answers))
        described.append(field(_OUTPUTS, output))
    return b"".join(described + follows)


@functools.lru_cache(maxsize=1_024)
def _described(name: str, kind: str, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(varint(size) for size in shape)
    return field(_NAME, name.encode()) + field(_DATATYPE, kind.encode()) + field(_SHAPE, sizes)


def _one_raw(answer: Answer) -> bytes:
    """All outputs for one text, raw: `_outputs` in fewer steps."""
    text, reason = answer.text.encode(), answer.finish_reason.encode()
    return b"".join((
        _ALL_OF_ONE,
        _RAW_TAG, varint(len(text) + 4), len(text).to_bytes(4, "little"), text,
        _RAW_TAG, varint(len(reason) + 4), len(reason).to_bytes(4, "little"), reason,
        _RAW_NUMBERS % tuple([each.to_bytes(8, "little") for each in answer.tokens()]),
    ))  # fmt: skip


def _one_typed(answer: Answer) -> bytes:
    """All outputs for one text, in their contents."""
    found: list[bytes] = []
    data = (answer.text.encode(), answer.finish_reason.encode(), *[varint(each) for each in answer.tokens()])
    for (described, tag), each in zip(_EACH_OF_ONE, data, strict=True):
        size = varint(len(each))
        contents = 1 + len(size) + len(each)
        length = varint(contents)
        found += (_OUTPUT_TAG, varint(len(described) + len(length) + contents), described, length, tag, size, each)
    return b"".join(found)


_ALL_OF_ONE = b"".join(field(_OUTPUTS, _described(name, kind, (1,))) for name, kind in TEXT_OUTPUTS.items())
_RAW_TAG = bytes((_RAW_OUTPUTS << 3 | 2,))
_OUTPUT_TAG = bytes((_OUTPUTS << 3 | 2,))
# Each output up to the length of its contents, and the tag of the one field in them.
_EACH_OF_ONE = [
    (_described(name, kind, (1,)) + bytes((_CONTENTS << 3 | 2,)), bytes((_FIELDS[kind] << 3 | 2,)))
    for name, kind in TEXT_OUTPUTS.items()
]
_RAW_NUMBERS = 3 * (_RAW_TAG + b"\x08%b")


def _contents(name: str, kind: str, answers: list[Answer] | Embeddings) -> bytes:
    """An InferTensorContents."""
    if isinstance(answers, Embeddings):
        if name == "embedding":
            return field(_FP32_CONTENTS, answers.rows)  # packed singles are little-endian, too
        return field(_INT64_CONTENTS, varint(answers.prompt_tokens))
    values = [each.value(name) for each in answers]
    if kind == "BYTES":
        return b"".join([field(_BYTES_CONTENTS, value.encode()) for value in values])
    return field(_INT64_CONTENTS, b"".join([varint(value) for value in values]))
