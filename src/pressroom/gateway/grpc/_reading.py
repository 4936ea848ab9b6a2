"""ModelInferRequest to what the engines are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from pressroom.gateway.grpc import inference_pb2
from pressroom.gateway.protocols._v2_models import TEXT_INPUTS, Face, Faces
from pressroom.gateway.protocols._v2_requests import Job, job, text_job
from pressroom.gateway.protocols._v2_tensors import MOST_ELEMENTS, Invalid, Tensor, shortest, text_of_one
from pressroom.gateway.routes import RouteTable

if TYPE_CHECKING:
    from pressroom.gateway.admission import Client

_MOST_INPUTS = 64
_ID_LIMIT = 1_024
# The shape of one text. Never changed.
_ONE = [1]
_parse = inference_pb2.ModelInferRequest.FromString
# Where the elements of each datatype are when they are not raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parsed(data: bytes) -> Any:
    """A ModelInferRequest.

    Raises:
        Invalid: the bytes are not one.
    """
    try:
        return _parse(data)
    except DecodeError:
        raise Invalid("This is not a ModelInferRequest.") from None


def face_of(faces: Faces, routes: RouteTable, name: str, version: str, client: Client) -> Face:
    """The model that is asked for.

    Raises:
        Invalid: there is none, not in this version, or not for this client.
    """
    from pressroom.gateway._generation import no_model

    face = faces.of(name)
    if face is None or not client.caller.may_ask(face.name):
        raise Invalid(no_model(routes, name, client.caller).message, 404)
    if version:
        face.check_version(version)
    return face


def read(request: Any, face: Face) -> tuple[Job, bool]:
    """The request, and whether its data came raw, in which case the answer's go out so.

    Raises:
        Invalid: what is wrong with it.
    """
    inputs, raw = request.inputs, request.raw_input_contents
    if len(inputs) > _MOST_INPUTS:
        raise Invalid(f"There are {len(inputs)} inputs; at most {_MOST_INPUTS} are taken.")
    if len(request.id) > _ID_LIMIT:
        raise Invalid(f"The id is over {_ID_LIMIT} characters.")
    is_raw = bool(raw)
    if len(inputs) == 1 and not (request.parameters or request.outputs or face.embeds):
        text = _one_text(inputs[0], raw)
        if text is not None:
            return text_job(face, text, None, shape=_ONE, id=request.id or None), is_raw
    if is_raw and len(raw) != len(inputs):
        raise Invalid(f"There are {len(inputs)} inputs and {len(raw)} raw_input_contents: one belongs to each.")
    tensors = []
    for place, each in enumerate(inputs):
        name = each.name
        if each.parameters:
            _check_parameters(f"Input '{name[:80]}'", each.parameters)
        if is_raw:
            if each.HasField("contents"):
                raise Invalid(f"Input '{name[:80]}' has contents beside raw_input_contents: send one of them.")
            data: Any = raw[place]
        else:
            data = _typed(each)
        tensors.append(Tensor(name, each.datatype, list(each.shape), data))
    parameters = {name: _value(name, each) for name, each in request.parameters.items()} if request.parameters else None
    names = None
    if request.outputs:
        names = []
        for each in request.outputs:
            if each.parameters:
                _check_parameters(f"Output '{each.name[:80]}'", each.parameters)
            names.append(each.name)
    return job(face, tensors, parameters, outputs=names, id=request.id or None), is_raw


def _one_text(given: Any, raw: Any) -> str | None:
    """The text of a request for one answer and nothing else; None where it is anything else, or wrong."""
    if given.name not in TEXT_INPUTS or given.datatype != "BYTES" or given.shape != _ONE or given.parameters:
        return None
    if len(raw):
        return None if len(raw) > 1 or given.HasField("contents") else text_of_one(raw[0])
    contents = given.contents
    texts = contents.bytes_contents
    if len(texts) != 1 or len(contents.ListFields()) != 1:
        return None
    try:
        text: str = texts[0].decode()
    except UnicodeDecodeError:
        return None
    return text


def _typed(given: Any) -> list[Any]:
    """The elements that are not raw."""
    datatype, name = given.datatype, given.name
    contents = given.contents
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    field = _CONTENTS.get(datatype)
    if field is None:
        if datatype in ("FP16", "BF16"):
            raise Invalid(f"Input '{name[:80]}' is {datatype}, which is sent in raw_input_contents only.")
        return []  # the datatype is refused when the tensor is read
    if filled and filled != [field]:
        raise Invalid(f"Input '{name[:80]}' is {datatype}, so its elements belong into {field}, not {filled[0]}.")
    values = getattr(contents, field)
    if len(values) > MOST_ELEMENTS:
        raise Invalid(f"Input '{name[:80]}' has {len(values)} elements; at most {MOST_ELEMENTS} are taken.")
    return [shortest(value) for value in values] if datatype == "FP32" else list(values)


def _value(name: str, parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise Invalid(f"Parameter '{name[:80]}' has no value.")
    return getattr(parameter, kind)


def _check_parameters(where: str, parameters: Any) -> None:
    for name, parameter in parameters.items():
        if name != "content_type" or _value(name, parameter) != "str":
            raise Invalid(f"{where} has the parameter '{name[:80]}'; only a 'content_type' of 'str' is understood.")
