"""From tensors and parameters to what the engines are asked: the same for REST and gRPC."""

from __future__ import annotations

import math
from typing import Any

from pressroom.gateway.protocols._v2_models import TEXT_INPUTS, Face
from pressroom.gateway.protocols._v2_parameters import Wanted
from pressroom.gateway.protocols._v2_tensors import MOST_ELEMENTS, Invalid, Tensor, text
from pressroom.gateway.protocols.openai import CHAT, COMPLETION, EMBEDDING, Endpoint

_USAGE = {"include_usage": True}


class Job:
    """One request, read: what to ask (`fields`, one for each engine request) and how to answer.

    `shape` is that of the text, `outputs` the names of those wanted, in order; None stands for all.
    """

    __slots__ = ("embeds", "endpoint", "face", "fields", "id", "outputs", "shape", "stream")

    def __init__(
        self,
        face: Face,
        endpoint: Endpoint,
        fields: list[dict[str, Any]],
        *,
        shape: list[int],
        outputs: list[str] | None,
        stream: bool | None,
        id: str | None,
    ) -> None:
        self.face = face
        self.endpoint = endpoint
        self.embeds = endpoint is EMBEDDING
        self.fields = fields
        self.shape = shape
        self.outputs = outputs
        self.stream = stream
        self.id = id

    @property
    def names(self) -> list[str]:
        """The outputs to answer with."""
        return list(self.face.outputs) if self.outputs is None else self.outputs

    def streamed(self) -> dict[str, Any]:
        """The fields of its one engine request, with a stream asked for.

        Raises:
            Invalid: it has several texts, or embeds.
        """
        if self.embeds:
            raise Invalid(f"The model '{self.face.name}' embeds; there is nothing to stream. Use infer.")
        if len(self.fields) != 1:
            raise Invalid(f"One text at a time is streamed, and there are {len(self.fields)}. Send a request for each.")
        return {**self.fields[0], "stream": True, "stream_options": _USAGE}


def job(
    face: Face,
    tensors: list[Tensor],
    parameters: dict[str, Any] | None,
    *,
    outputs: list[str] | None = None,
    id: str | None = None,
) -> Job:
    """Read the inputs of an inference request.

    Raises:
        Invalid: what is wrong with them.
    """
    wanted = Wanted()
    if parameters:
        for name, value in parameters.items():
            wanted.take(name, value)
    given, rows = _sorted(tensors, wanted)
    texts = [text(given, value) for value in given.values()]
    if not texts:
        raise Invalid(f"Input '{given.name}' has no elements.")
    if outputs is not None:
        _check_outputs(face, outputs)
    if face.embeds:
        if wanted.chat or rows:
            raise Invalid(
                f"The model '{face.name}' embeds: it has the one input {TEXT_INPUTS[0]}, and no conversation."
            )
        fields = [{"model": face.name, "input": texts, **wanted.for_endpoint(EMBEDDING)}]
        return Job(face, EMBEDDING, fields, shape=given.shape, outputs=outputs, stream=wanted.stream, id=id)
    endpoint = text_endpoint(face, wanted)
    for name in rows:
        wanted.fields.setdefault(name, None)
    sampling = wanted.for_endpoint(endpoint)
    fields = [asked(face.name, each, endpoint, sampling) for each in texts]
    for name, values in rows.items():
        if len(values) != len(texts):
            raise Invalid(f"Input '{name}' has {len(values)} elements: it may have one, or one for each text.")
        for each, value in zip(fields, values, strict=True):
            each[name] = value
    return Job(face, endpoint, fields, shape=given.shape, outputs=outputs, stream=wanted.stream, id=id)


def text_job(
    face: Face,
    text: str,
    wanted: Wanted | None,
    *,
    shape: list[int],
    outputs: list[str] | None = None,
    id: str | None = None,
) -> Job:
    """A request with one text: what nearly every request is, and `job` in fewer steps.

    Raises:
        Invalid: what is wrong with it.
    """
    if wanted is None:
        endpoint = CHAT if face.only_chats else COMPLETION
        fields = [asked(face.name, text, endpoint, {})]
        return Job(face, endpoint, fields, shape=shape, outputs=outputs, stream=None, id=id)
    endpoint = text_endpoint(face, wanted)
    fields = [asked(face.name, text, endpoint, wanted.for_endpoint(endpoint))]
    return Job(face, endpoint, fields, shape=shape, outputs=outputs, stream=wanted.stream, id=id)


def text_endpoint(face: Face, wanted: Wanted) -> Endpoint:
    """Where a text goes: to completions, unless a conversation was asked for or is all the engine can do."""
    chats = face.only_chats if wanted.chat is None else wanted.chat
    return CHAT if chats else COMPLETION


def asked(model: str, given: str, endpoint: Endpoint, sampling: dict[str, Any]) -> dict[str, Any]:
    """The fields of one engine request."""
    if endpoint is CHAT:
        return {"model": model, "messages": [{"role": "user", "content": given}], **sampling}
    return {"model": model, "prompt": given, **sampling}


def _sorted(tensors: list[Tensor], wanted: Wanted) -> tuple[Tensor, dict[str, list[Any]]]:
    """The text, and what has one value for each text; what has one value for all goes to `wanted`."""
    given: Tensor | None = None
    rows: dict[str, list[Any]] = {}
    for tensor in tensors:
        if tensor.name in TEXT_INPUTS:
            if given is not None:
                raise Invalid(f"There is more than one text: inputs '{given.name}' and '{tensor.name}'.")
            if tensor.datatype != "BYTES":
                raise Invalid(f"Input '{tensor.name}' is text, so its datatype is BYTES, not '{tensor.datatype[:40]}'.")
            given = tensor
            continue
        values = _plain(tensor)
        if tensor.name in wanted.fields or tensor.name in rows:
            raise Invalid(f"'{tensor.name[:80]}' is given twice.")
        if tensor.name == "stop":
            wanted.take(tensor.name, values)
        elif len(values) == 1:
            wanted.take(tensor.name, values[0])
        elif tensor.name in ("chat", "stream", "sampling_parameters", "exclude_input_in_output"):
            raise Invalid(f"Input '{tensor.name}' has {len(values)} elements: it has one, for the whole request.")
        else:
            rows[tensor.name] = values
    if given is None:
        raise Invalid(f"There is no text: the input '{TEXT_INPUTS[0]}' is missing (BYTES, one element a text).")
    return given, rows


def _plain(tensor: Tensor) -> list[Any]:
    values = tensor.values()
    if tensor.datatype == "BYTES":
        return [text(tensor, value) for value in values]
    for value in values:
        if type(value) is float and not math.isfinite(value):
            raise Invalid(f"Input '{tensor.name[:80]}' has {value}, which is not a number anything can be done with.")
    return values


def _check_outputs(face: Face, outputs: list[str]) -> None:
    for name in outputs:
        if name not in face.outputs:
            has = ", ".join(face.outputs)
            raise Invalid(f"The model '{face.name}' has no output '{name[:80]}'. Its outputs are: {has}.")
    if len(set(outputs)) != len(outputs):
        raise Invalid("An output is asked for twice.")


assert MOST_ELEMENTS <= 2_048  # texts that OpenAI's embeddings take at once
