"""Sentence encoders: pooling as their files say, and the server in front of them."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from pressroom.engines._transformers import folder
from pressroom.engines._transformers.embedding import Encoder, Job
from pressroom.engines._transformers.loading import load
from pressroom.engines._transformers.options import Options
from pressroom.engines._transformers.refusal import Refusal
from pressroom.engines._transformers.routes import EmbeddingRoutes
from pressroom.engines._transformers.server import Server

from . import _tiny_models as tiny


def _encoder(path: Path, *, context: int = 0) -> Encoder:
    loaded = load({"name": "vectors", "threads": 1, "context": context}, folder.read(path), Options(device="cpu"))
    assert loaded.encoder is not None and loaded.served is None
    return loaded.encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return _encoder(tiny.encoder(tmp_path_factory.mktemp("encoder")))


def _hidden(encoder: Encoder, tokens: list[int]) -> Any:
    with torch.inference_mode():
        return encoder.model(torch.tensor([tokens])).last_hidden_state[0]


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens", "lasttoken"])
@pytest.mark.parametrize("normal", [True, False])
def test_pooling_is_what_the_folder_says(tmp_path: Path, mode: str, normal: bool) -> None:
    encoder = _encoder(tiny.encoder(tmp_path / "model", pooling=mode, normal=normal))
    inputs = [[2, 30, 3], [2, 30, 31, 33, 34, 5, 6, 3], [2, 3]]
    for tokens, vector in zip(inputs, encoder.encode(inputs), strict=True):
        hidden = _hidden(encoder, tokens)
        wanted = {
            "mean_tokens": hidden.mean(dim=0),
            "cls_token": hidden[0],
            "max_tokens": hidden.amax(dim=0),
            "lasttoken": hidden[-1],
        }[mode]
        if normal:
            wanted = wanted / wanted.norm()
        assert torch.allclose(vector, wanted, atol=1e-5)


def test_an_encoder_without_a_word_on_pooling_gets_the_mean(tmp_path: Path) -> None:
    path = tiny.encoder(tmp_path / "model")
    (path / "1_Pooling" / "config.json").unlink()
    (path / "modules.json").unlink()
    (path / "sentence_bert_config.json").unlink()
    found = folder.read(path)
    assert found.pooling == folder.Pooling(mode="mean", normal=True) and found.trained == 64 and found.usual == 0


def test_the_context_is_the_folders_or_what_was_asked_for(tmp_path: Path, encoder: Encoder) -> None:
    assert encoder.context == 32
    assert _encoder(tiny.encoder(tmp_path / "model"), context=64).context == 64


def test_requests(encoder: Encoder) -> None:
    assert encoder.read({"input": "The cat"}).inputs == [[2, 30, 31, 3]]
    assert encoder.read({"input": ["the", "cat"], "dimensions": 16}).inputs == [[2, 30, 3], [2, 31, 3]]
    assert encoder.read({"input": [5, 6]}).inputs == [[5, 6]]
    assert encoder.read({"input": [[5], [6, 7]], "encoding_format": "base64"}).packed
    assert encoder.read({"input": "the", "add_special_tokens": False}).inputs == [[30]]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "missing_required_parameter"),
        ({"input": []}, "invalid_type"),
        ({"input": ""}, "empty_string"),
        ({"input": ["a", ""]}, "empty_string"),
        ({"input": [[]]}, "empty_string"),
        ({"input": 7}, "invalid_type"),
        ({"input": ["a", 7]}, "invalid_type"),
        ({"input": [5, "a"]}, "invalid_type"),
        ({"input": [[-1]]}, "invalid_value"),
        ({"input": [[10**9]]}, "invalid_value"),
        ({"input": ["a"] * 2049}, "invalid_value"),
        ({"input": "a", "encoding_format": "int8"}, "invalid_value"),
        ({"input": "a", "dimensions": 8}, "unsupported_parameter"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "unsupported_parameter"),
        ({"input": "the " * 31}, "context_length_exceeded"),
        ({"input": "x" * 1_000_000}, "context_length_exceeded"),
        ({"input": [[5] * 33]}, "context_length_exceeded"),
    ],
)
def test_requests_that_are_refused(encoder: Encoder, fields: dict[str, Any], kind: str) -> None:
    with pytest.raises(Refusal) as caught:
        encoder.read(fields)
    assert caught.value.kind == kind and caught.value.status == 400


def test_a_text_of_spaces_is_cheap(encoder: Encoder) -> None:
    assert encoder.read({"input": " " * 20_000 + "cat"}).inputs == [[2, 31, 3]]
    with pytest.raises(Refusal, match="at most 32000"):
        encoder.read({"input": " " * 50_000_000})


# The server in front of it


@pytest.fixture(scope="module")
def port(encoder: Encoder) -> Iterator[int]:
    ports: list[int] = []
    listening, stopping = threading.Event(), threading.Event()

    async def serve() -> None:
        server = Server(EmbeddingRoutes("vectors", encoder).handle)
        ports.append(await server.listen())
        listening.set()
        while not stopping.is_set():
            await asyncio.sleep(0.02)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert listening.wait(60)
    yield ports[0]
    stopping.set()
    thread.join()


def _ask(port: int, path: str = "/v1/embeddings", **fields: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(fields))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _vectors(port: int, given: Any, **fields: Any) -> list[Any]:
    status, answer = _ask(port, input=given, **fields)
    assert status == 200, answer
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return [entry["embedding"] for entry in answer["data"]]


def test_the_answer_has_openais_form(port: int) -> None:
    status, answer = _ask(port, input=["the cat runs", "the dog"], model="x", user="me")
    assert status == 200 and answer["object"] == "list" and answer["model"] == "vectors"
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}


def test_what_it_is_put_together_with_changes_nothing(port: int) -> None:
    texts = ["the cat runs", "the dog", "fast " * 20, "a b c d", "dog"] * 60
    together = _vectors(port, texts)
    for text, vector in list(zip(texts, together, strict=True))[-5:]:
        (alone,) = _vectors(port, text)
        assert vector == pytest.approx(alone, abs=1e-5)
        assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-5)
    assert together[:5] == [pytest.approx(vector, abs=1e-5) for vector in together[-5:]]


def test_packed_vectors_are_the_same_numbers(port: int) -> None:
    floats, packed = _vectors(port, ["the cat", "dog"]), _vectors(port, ["the cat", "dog"], encoding_format="base64")
    for numbers, text in zip(floats, packed, strict=True):
        assert list(struct.unpack("<16f", base64.b64decode(text))) == pytest.approx(numbers, abs=1e-7)


def test_many_clients_at_once(port: int) -> None:
    wanted = _vectors(port, "the cat")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(_vectors(port, ["the cat"] * 30))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(vector == pytest.approx(wanted[0], abs=1e-5) for vectors in found for vector in vectors)


def test_other_endpoints_are_refused(port: int) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        status, answer = _ask(port, path, prompt="x")
        assert status == 400 and answer["error"]["code"] == "unsupported_parameter"
    status, answer = _ask(port, input="the " * 100)
    assert status == 400 and "maximum context length is 32 tokens" in answer["error"]["message"]


def test_a_failing_model_fails_its_requests_and_nobody_else(
    port: int, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode", broken)
        status, answer = _ask(port, input="the cat")
        assert status == 500 and "out of memory" in answer["error"]["message"]
    assert _ask(port, input="the cat")[0] == 200


def test_too_many_are_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pressroom.engines._transformers.embedding._MOST_WAITING", 3)
    status, answer = _ask(port, input=["cat"] * 4)
    assert status == 503 and answer["error"]["code"] == "engine_full"


def test_nobody_waits_for_a_job_whose_client_left(encoder: Encoder) -> None:
    job = Job(encoder.read({"input": ["the", "cat"]}))
    assert job.missing == 2 and not job.gone
    assert job.body("vectors")["usage"]["prompt_tokens"] == 6
