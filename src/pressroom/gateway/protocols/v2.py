"""KServe V2 over REST: bodies of `infer`, `generate` and `generate_stream`, read. `_v2_writing` has the answers.

`generate` takes two bodies and tells them apart by their shape: `{"text_input": "…", "parameters": {…}}` of the Open
Inference Protocol, and the tensors of `infer`, as MLServer has it. A request with the header
`Inference-Header-Content-Length` has the data of its tensors behind its JSON, in binary.
"""

from __future__ import annotations

from typing import Any

import orjson

from pressroom.gateway.protocols._v2_models import TEXT_INPUTS, Face
from pressroom.gateway.protocols._v2_parameters import Wanted
from pressroom.gateway.protocols._v2_requests import Job, job, text_job
from pressroom.gateway.protocols._v2_tensors import Invalid, Tensor, text_of_one
from pressroom.gateway.protocols._v2_writing import Binary

_TOP = frozenset(("id", "parameters", "inputs", "outputs"))
_INPUT = frozenset(("name", "shape", "datatype", "parameters", "data"))
_OUTPUT = frozenset(("name", "parameters"))
# The shape of one text. Never changed.
_ONE = [1]
_BINARY_OUTPUT = {"binary_data_output": True}
_MOST_INPUTS = 64
_ID_LIMIT = 1_024


def read_json(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object.

    Raises:
        Invalid: it is not.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"The body is not valid JSON: {error if body else 'it is empty'}.") from None
    if type(found) is not dict:
        raise Invalid("The body must be a JSON object.")
    return found


def read_generate(face: Face, body: bytes) -> Job | None:
    """A body of `generate` in the Open Inference Protocol's own form; None where it is made of tensors."""
    given = read_json(body)
    if len(given) == 1 and type(only := given.get("text_input")) is str and not face.embeds:
        return text_job(face, only, None, shape=_ONE)
    if "inputs" in given:
        return None
    wanted = Wanted()
    text: Any = None
    id: str | None = None
    for name, value in given.items():
        if name == "text_input":
            text = value
        elif name == "parameters":
            for inner, each in _object("parameters", value).items():
                wanted.take(inner, each)
        elif name == "id":
            id = _id(value)
        else:
            wanted.take(name, value)  # Triton has parameters beside the text, too
    if face.embeds:
        raise Invalid(f"The model '{face.name}' embeds and generates nothing. Use infer.")
    if type(text) is not str:
        found = "is missing" if text is None else "must be a string"
        raise Invalid(f'\'text_input\' {found}. Send {{"text_input": "…", "parameters": {{…}}}}, or tensors.')
    return text_job(face, text, wanted, shape=_ONE, id=id)


def read_infer(face: Face, body: bytes, header_length: bytes | None) -> tuple[Job, Binary]:
    """A body made of tensors. `header_length` is the value of Inference-Header-Content-Length.

    Raises:
        Invalid: what is wrong with it.
    """
    binary = Binary()
    data = b""
    if header_length is not None:
        body, data = _split(body, header_length)
    given = read_json(body)
    if not face.embeds:
        text = _one_text(given, data)
        if text is not None:
            binary.every = bool(data)
            return text_job(face, text, None, shape=_ONE), binary
    if not given.keys() <= _TOP:
        raise _unknown("The body", given, _TOP)
    inputs = given.get("inputs")
    if type(inputs) is not list or not inputs:
        raise Invalid("'inputs' must be an array of at least one tensor.")
    if len(inputs) > _MOST_INPUTS:
        raise Invalid(f"There are {len(inputs)} inputs; at most {_MOST_INPUTS} are taken.")
    tensors, at = [], 0
    for each in inputs:
        tensor, at = _tensor(each, data, at, binary_follows=header_length is not None)
        tensors.append(tensor)
    if at != len(data):
        raise Invalid(f"{len(data) - at} bytes follow the JSON that no input's 'binary_data_size' claims.")
    parameters = given.get("parameters")
    if parameters is not None:
        parameters = dict(_object("parameters", parameters))
        binary.every = parameters.pop("binary_data_output", False) is True
    outputs = given.get("outputs")
    names = None if outputs is None or outputs == [] else _outputs(outputs, binary)
    return job(face, tensors, parameters, outputs=names, id=_id(given.get("id"))), binary


def _one_text(given: dict[str, Any], data: bytes) -> str | None:
    """The text of a request for one answer and nothing else, as tritonclient sends it in binary, or in JSON; None where
    it is anything else, or wrong."""
    inputs = given.get("inputs")
    if type(inputs) is not list or len(inputs) != 1 or type(inputs[0]) is not dict or len(inputs[0]) != 4:
        return None
    only = inputs[0]
    if only.get("name") not in TEXT_INPUTS or only.get("shape") != _ONE or only.get("datatype") != "BYTES":
        return None
    if not data:
        texts: Any = only.get("data")
        plain = len(given) == 1 and type(texts) is list and len(texts) == 1 and type(texts[0]) is str
        return texts[0] if plain else None
    alone = len(given) == 2 and given.get("parameters") == _BINARY_OUTPUT
    if not alone or only.get("parameters") != {"binary_data_size": len(data)}:
        return None
    return text_of_one(data)


def _split(body: bytes, header_length: bytes) -> tuple[bytes, bytes]:
    length = int(header_length) if header_length.isdigit() and len(header_length) < 16 else -1
    if not 0 <= length <= len(body):
        shown = header_length[:20].decode(errors="replace")
        raise Invalid(f"Inference-Header-Content-Length is {shown!r}, and the body has {len(body)} bytes.")
    return body[:length], body[length:]


def _tensor(given: Any, data: bytes, at: int, *, binary_follows: bool) -> tuple[Tensor, int]:
    """One input, and where the data of the next one begin."""
    if type(given) is not dict:
        raise Invalid("Each of 'inputs' must be an object.")
    if not given.keys() <= _INPUT:
        raise _unknown("An input", given, _INPUT)
    name, datatype, shape = given.get("name"), given.get("datatype"), given.get("shape")
    if type(name) is not str or type(datatype) is not str or type(shape) is not list:
        raise Invalid("Each of 'inputs' must have a 'name', a 'datatype' (strings) and a 'shape' (an array).")
    size = None
    parameters = given.get("parameters")
    if parameters is not None:
        for key, value in _object(f"parameters of input '{name[:80]}'", parameters).items():
            if key == "binary_data_size":
                size = value
            elif key != "content_type" or value != "str":
                raise Invalid(
                    f"Input '{name[:80]}' has the parameter '{key[:80]}'; only 'binary_data_size' and a 'content_type' "
                    "of 'str' are understood."
                )
    if size is None:
        if "data" not in given:
            raise Invalid(f"Input '{name[:80]}' has no 'data'.")
        return Tensor(name, datatype, shape, given["data"]), at
    if "data" in given:
        raise Invalid(f"Input '{name[:80]}' has both 'data' and 'binary_data_size'.")
    if not binary_follows:
        raise Invalid(f"Input '{name[:80]}' has its data in binary, but there is no Inference-Header-Content-Length.")
    if type(size) is not int or not 0 <= size <= len(data) - at:
        raise Invalid(f"Input '{name[:80]}' claims {str(size)[:20]} bytes, and {len(data) - at} are left.")
    return Tensor(name, datatype, shape, data[at : at + size]), at + size


def _outputs(given: Any, binary: Binary) -> list[str]:
    if type(given) is not list:
        raise Invalid("'outputs' must be an array.")
    names = []
    for each in given:
        if type(each) is not dict or type(each.get("name")) is not str:
            raise Invalid("Each of 'outputs' must be an object with a 'name'.")
        if not each.keys() <= _OUTPUT:
            raise _unknown("An output", each, _OUTPUT)
        name = each["name"]
        for key, value in _object(f"parameters of output '{name[:80]}'", each.get("parameters", {})).items():
            if key == "binary_data" and type(value) is bool:
                (binary.these if value else binary.not_these).add(name)
            elif key != "content_type":
                raise Invalid(
                    f"Output '{name[:80]}' has the parameter '{key[:80]}'; only 'binary_data' (true or false) is "
                    "understood."
                )
        names.append(name)
    return names


def _object(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise Invalid(f"The {name} must be an object.")
    return value


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if type(value) is not str or len(value) > _ID_LIMIT:
        raise Invalid(f"'id' must be a string of at most {_ID_LIMIT} characters.")
    return value


def _unknown(where: str, given: dict[str, Any], allowed: frozenset[str]) -> Invalid:
    name = next(each for each in given if each not in allowed)
    return Invalid(f"{where} has '{name[:80]}', which is not understood. Allowed: {', '.join(sorted(allowed))}.")
