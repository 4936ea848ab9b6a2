"""The contract, for every engine there is: a new file under `engines/backends/` is tested with no further edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.engines import Endpoint, EngineSpec, create, engine_class, engine_names
from pressroom.testing.engine_contract import EngineContract


class _WithoutWeights(EngineContract):
    @pytest.fixture
    def talker(self, spec: EngineSpec) -> Iterator[Endpoint]:
        talking = dataclasses.replace(spec, options={"tokens": 100_000, "delay_s": 0.001})
        engine = create(self.engine_name, talking)
        yield engine.start()
        engine.stop()


@pytest.mark.slow
class _WithWeights(EngineContract):
    @pytest.fixture
    def spec(self, tmp_path: Path, request: pytest.FixtureRequest) -> EngineSpec:
        formats = engine_class(self.engine_name).formats
        if "gguf" not in formats:
            pytest.skip(f"the tests have no model in the format {formats[0]}")
        model: Path = request.getfixturevalue("smollm2")
        return EngineSpec(name="tested", model=model, context=512, slots=4, log=tmp_path / "engine.log")


for _name in engine_names():
    _kind = _WithWeights if engine_class(_name).formats else _WithoutWeights
    _title = f"Test{_name.title()}"
    globals()[_title] = type(_title, (_kind,), {"engine_name": _name, "__module__": __name__})


def test_every_engine_is_known() -> None:
    assert {"llamacpp", "echo"} <= set(engine_names())
