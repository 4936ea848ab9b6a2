"""Makes inference_pb2.py of inference.proto: `python -m pressroom.gateway.grpc.generate` (needs grpcio-tools).

Not protoc's own Python: that puts the messages into the one pool of the process, where the client libraries of other
servers put messages of the same names, and the second of the two fails to import. This has a pool of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
PROTO = FOLDER / "inference.proto"
MADE = FOLDER / "inference_pb2.py"
_WIDTH = 108

_HEAD = '''"""The messages of inference.proto. Made by `python -m pressroom.gateway.grpc.generate`; do not edit."""

# fmt: off
from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory  # type: ignore[import-untyped]

#: These messages, and none of another library.
POOL = descriptor_pool.DescriptorPool()

'''


def made() -> str:
    """The text of inference_pb2.py."""
    from google.protobuf import descriptor_pb2  # type: ignore[import-untyped]
    from grpc_tools import protoc  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "set"
        if protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={found}", PROTO.name]):
            raise SystemExit(f"protoc refused {PROTO}")
        files = descriptor_pb2.FileDescriptorSet.FromString(found.read_bytes())
    (file,) = files.file
    # A name that says whose file it is to whoever asks by reflection.
    file.name = "pressroom/inference.proto"
    for message in file.message_type:
        _forget_json_names(message)
    data = file.SerializeToString(deterministic=True)
    lines = ["DESCRIPTOR: Any = POOL.AddSerializedFile(bytes.fromhex("]
    text = data.hex()
    lines += [f'    "{text[at : at + _WIDTH]}"' for at in range(0, len(text), _WIDTH)]
    lines += ["))", "", "", "def _message(name: str) -> Any:"]
    lines += ["    return message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name[name])", "", ""]
    lines += [f'{name}: Any = _message("{name}")' for name in sorted(each.name for each in file.message_type)]
    return _HEAD + "\n".join(lines) + "\n"


def _forget_json_names(message: object) -> None:
    """protoc adds to each field what can be told from its name."""
    for field in message.field:  # type: ignore[attr-defined]
        field.ClearField("json_name")
    for inner in message.nested_type:  # type: ignore[attr-defined]
        _forget_json_names(inner)


if __name__ == "__main__":
    MADE.write_text(made(), encoding="utf-8")
