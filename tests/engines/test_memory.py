"""Estimates against values computed by hand and against a real engine; the ledger against its promises."""

from __future__ import annotations

import http.client
import json
import random
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pressroom.engines import Action, Endpoint, EngineSpec, MemoryLedger, available, create, estimate
from pressroom.engines._footprint_machine import container_limit
from pressroom.engines._footprint_shape import Layer, shape_of
from pressroom.kernel import EnginesSettings, PressroomError, WeightsError

MIB = 1 << 20
GIB = 1 << 30
Tensors = dict[str, tuple[int, ...]]


def gguf(path: Path, architecture: str, keys: dict[str, Any], tensors: Tensors, kind: str = "F16") -> Path:
    """A GGUF file with this header; its data is a hole of the right size."""
    number, block, size = {"F16": (1, 1, 2), "Q4_0": (2, 32, 18), "F32": (0, 1, 4)}[kind]

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(given: Any) -> bytes:
        if isinstance(given, str):
            return struct.pack("<I", 8) + text(given)
        if isinstance(given, list):
            return struct.pack("<IIQ", 9, 4, len(given)) + b"".join(struct.pack("<I", one) for one in given)
        return struct.pack("<II", 4, given)

    pairs = {"general.architecture": architecture, **{f"{architecture}.{key}": one for key, one in keys.items()}}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    head += b"".join(text(key) + value(one) for key, one in pairs.items())
    at = 0
    for name, shape in tensors.items():
        elements = 1
        for n in shape:
            elements *= n
        at = -(-at // 32) * 32
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", number, at)
        at += elements // block * size
    head += b"\0" * (-len(head) % 32)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + at)
    return path


def folder(path: Path, config: dict[str, Any], tensors: Tensors, dtype: str = "BF16") -> Path:
    """A folder as Hugging Face lays it out, with such tensors and no data in them."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["SomeForCausalLM"], **config}))
    header: dict[str, Any] = {}
    at = 0
    for name, shape in tensors.items():
        elements = 1
        for n in shape:
            elements *= n
        size = elements * {"BF16": 2, "F32": 4, "I32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    return path


# SmolLM2-135M: 30 layers, width 576, 9 heads and 3 key-value heads of 64, feed-forward 1536, 49,152 tokens.
SMOLLM2_KEYS = {
    "block_count": 30,
    "context_length": 8192,
    "embedding_length": 576,
    "feed_forward_length": 1536,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "vocab_size": 49152,
}
SMOLLM2_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "max_position_embeddings": 8192,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
# 2 (keys and values) × 30 layers × 3 heads × 64 numbers × 2 bytes.
SMOLLM2_TOKEN = 23_040


def smollm2_gguf(path: Path, kind: str = "F16") -> Path:
    tensors: Tensors = {"token_embd.weight": (49152, 576)}
    for n in range(30):
        tensors |= {
            f"blk.{n}.attn_q.weight": (576, 576),
            f"blk.{n}.attn_k.weight": (192, 576),
            f"blk.{n}.attn_v.weight": (192, 576),
            f"blk.{n}.attn_output.weight": (576, 576),
            f"blk.{n}.ffn_gate.weight": (1536, 576),
            f"blk.{n}.ffn_up.weight": (1536, 576),
            f"blk.{n}.ffn_down.weight": (576, 1536),
            f"blk.{n}.ffn_norm.weight": (576,),
            f"blk.{n}.attn_norm.weight": (576,),
        }
    return gguf(path, "llama", SMOLLM2_KEYS, {**tensors, "output_norm.weight": (576,)}, kind)


def smollm2_folder(path: Path) -> Path:
    tensors: Tensors = {"model.embed_tokens.weight": (49152, 576)}
    for n in range(30):
        inside = f"model.layers.{n}"
        tensors |= {
            f"{inside}.self_attn.q_proj.weight": (576, 576),
            f"{inside}.self_attn.k_proj.weight": (192, 576),
            f"{inside}.self_attn.v_proj.weight": (192, 576),
            f"{inside}.self_attn.o_proj.weight": (576, 576),
            f"{inside}.mlp.gate_proj.weight": (1536, 576),
            f"{inside}.mlp.up_proj.weight": (1536, 576),
            f"{inside}.mlp.down_proj.weight": (576, 1536),
            f"{inside}.input_layernorm.weight": (576,),
            f"{inside}.post_attention_layernorm.weight": (576,),
        }
    return folder(path, SMOLLM2_CONFIG, {**tensors, "model.norm.weight": (576,)})


# --- shapes ------------------------------------------------------------


def test_both_formats_of_one_model_agree(tmp_path: Path) -> None:
    one, other = shape_of(smollm2_gguf(tmp_path / "m.gguf")), shape_of(smollm2_folder(tmp_path / "m"))
    assert one.layers == other.layers == (Layer(192, 192),) * 30
    assert 2 * one.numbers(1) == SMOLLM2_TOKEN
    for name in ("hidden", "heads", "widest", "vocabulary", "guesses"):
        assert getattr(one, name) == getattr(other, name), name
    # 134,515,008 parameters; the GGUF file has its header besides, and the folder's is not read into memory.
    assert other.weights == 2 * 134_515_008
    assert 0 < one.weights - other.weights < 32_768


def test_llama_3_8b(tmp_path: Path) -> None:
    # 32 layers, 8 key-value heads of 128: 128 KiB a token, as is known of it.
    keys = {"block_count": 32, "embedding_length": 4096, "attention.head_count": 32, "attention.head_count_kv": 8}
    tensors = {f"blk.{n}.attn_{which}.weight": (1024, 4096) for n in range(32) for which in "kv"}
    assert 2 * shape_of(gguf(tmp_path / "m", "llama", keys, tensors)).numbers(1) == 131_072


@pytest.mark.parametrize("said", ["gguf", "layer_types", "model_type"])
def test_windows_of_gemma_3_4b(tmp_path: Path, said: str) -> None:
    # 34 layers of 4 heads of 256; each sixth sees all, 29 the last 1024 tokens: 4,096 B a token and layer.
    if said == "gguf":
        keys = {
            "block_count": 34,
            "embedding_length": 2560,
            "attention.head_count": 8,
            "attention.head_count_kv": 4,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "attention.sliding_window": 1024,
        }
        tensors = {f"blk.{n}.attn_{which}.weight": (1024, 2560) for n in range(34) for which in "kv"}
        shape = shape_of(gguf(tmp_path / "m.gguf", "gemma3", keys, tensors))
    else:
        inner: dict[str, Any] = {"num_hidden_layers": 34, "hidden_size": 2560, "num_attention_heads": 8}
        inner |= {"head_dim": 256, "num_key_value_heads": 4, "sliding_window": 1024, "vocab_size": 262_208}
        if said == "layer_types":
            inner["layer_types"] = ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(34)]
        prefix = "language_model.model.layers"
        tensors = {f"{prefix}.{n}.self_attn.{w}_proj.weight": (1024, 2560) for n in range(34) for w in "kv"}
        # The other tower has key matrices as well, and keeps nothing.
        tensors |= {f"vision_tower.layers.{n}.self_attn.k_proj.weight": (1152, 1152) for n in range(27)}
        shape = shape_of(folder(tmp_path / "m", {"model_type": "gemma3", "text_config": inner}, tensors))
    assert len(shape.layers) == 34 and len(shape.windowed) == 29
    assert 2 * shape.numbers(100) == 34 * 100 * 4096
    assert 2 * shape.numbers(8192) == (5 * 8192 + 29 * 1024) * 4096


def test_latent_attention_of_deepseek_v2_lite(tmp_path: Path) -> None:
    # 27 layers that keep 512 + 64 numbers of a token; an engine that does not know that keeps 16 heads of 192 and 128.
    config = {"num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16}
    config |= {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    tensors = {f"model.layers.{n}.self_attn.kv_a_proj_with_mqa.weight": (576, 2048) for n in range(27)}
    shape = shape_of(folder(tmp_path / "m", config, tensors))
    assert 2 * shape.numbers(1) == 27 * 576 * 2
    assert 2 * shape.numbers(1, expanded=True) == 27 * 16 * (192 + 128) * 2
    keys = {"block_count": 27, "embedding_length": 2048, "attention.head_count": 16, "attention.head_count_kv": 1}
    keys |= {"attention.key_length": 576, "attention.value_length": 512}
    keys |= {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
    latent = {f"blk.{n}.attn_kv_a_mqa.weight": (576, 2048) for n in range(27)}
    new = shape_of(gguf(tmp_path / "new.gguf", "deepseek2", keys, latent))
    assert new.layers == shape.layers
    # Files from before llama.cpp knew it have one matrix for keys and values, and all heads are kept.
    old = {**latent, **{f"blk.{n}.attn_kv_b.weight": (4096, 512) for n in range(27)}}
    assert 2 * shape_of(gguf(tmp_path / "old.gguf", "deepseek2", keys, old)).numbers(1) == 27 * 16 * 320 * 2


def test_fused_matrices_of_gpt2(tmp_path: Path) -> None:
    # 12 layers of 12 heads of 64, all with keys and values of their own, in one matrix that does not say so.
    config = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    tensors: Tensors = {f"h.{n}.attn.c_attn.weight": (768, 2304) for n in range(12)}
    shape = shape_of(folder(tmp_path / "m", config, {"wte.weight": (50257, 768), **tensors}))
    assert 2 * shape.numbers(1) == 36_864
    assert "12" in shape.guesses[0]


def test_packed_weights_are_not_measured_by_their_rows(tmp_path: Path) -> None:
    # AWQ: the key matrix of 4096 → 1024 lies as (4096, 128) numbers of 32 bits.
    config = {"num_hidden_layers": 2, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    tensors = {f"model.layers.{n}.self_attn.{w}_proj.qweight": (4096, 128) for n in range(2) for w in "kv"}
    shape = shape_of(folder(tmp_path / "m", config, tensors, dtype="I32"))
    assert shape.layers == (Layer(1024, 1024),) * 2


def test_recurrent_layers_keep_a_state_and_no_tokens(tmp_path: Path) -> None:
    # A hybrid: one layer in four has attention, three keep 4096 × 128 numbers and 3 columns for the convolution.
    keys = {"block_count": 4, "embedding_length": 2048, "attention.head_count": 16, "attention.head_count_kv": 4}
    keys |= {"ssm.state_size": 128, "ssm.inner_size": 4096, "ssm.conv_kernel": 4, "ssm.group_count": 1}
    tensors = {"blk.3.attn_k.weight": (512, 2048), "blk.3.attn_v.weight": (512, 2048)}
    tensors |= {f"blk.{n}.ssm_in.weight": (8192, 2048) for n in range(3)}
    shape = shape_of(gguf(tmp_path / "m.gguf", "granitehybrid", keys, tensors))
    assert [layer.keys for layer in shape.layers] == [0, 0, 0, 512]
    assert shape.state == 3 * 4 * (4096 * 128 + 3 * (4096 + 2 * 128))


def test_an_encoder_keeps_nothing(tmp_path: Path) -> None:
    config = {"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12}
    tensors = {f"encoder.layer.{n}.attention.self.key.weight": (384, 384) for n in range(6)}
    found = estimate(folder(tmp_path / "m", config, tensors), engine="transformers", context=256, slots=4)
    assert found.kv_cache == 0 and found.weights == 6 * 384 * 384 * 2


def test_what_is_not_said_is_taken_larger_and_told(tmp_path: Path) -> None:
    keys = {"block_count": 8, "embedding_length": 1024, "attention.head_count": 16, "attention.sliding_window": 512}
    tensors = {f"blk.{n}.attn_qkv.weight": (3072, 1024) for n in range(8)}
    found = estimate(gguf(tmp_path / "m.gguf", "newcomer", keys, tensors), engine="llamacpp", context=4096, slots=1)
    assert found.kv_cache == 2 * 8 * 1024 * 2 * 4096
    assert "all 16" in found.how and "window of 512" in found.how


def test_a_header_without_layers_or_with_too_many_is_an_error(tmp_path: Path) -> None:
    keys = {**SMOLLM2_KEYS, "block_count": 4_000_000_000}
    with pytest.raises(WeightsError, match="4,000,000,000 layers"):
        estimate(gguf(tmp_path / "many.gguf", "llama", keys, {"x": (4, 4)}), engine="llamacpp", context=0, slots=1)
    with pytest.raises(WeightsError, match="how many layers"):
        estimate(gguf(tmp_path / "m.gguf", "llama", {}, {"some": (4, 4)}), engine="llamacpp", context=0, slots=1)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_hostile_keys_give_an_error_or_an_estimate(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    numbers = st.integers(0, 2**32 - 1) | st.lists(st.integers(0, 100), max_size=3) | st.text(max_size=5)
    names = st.sampled_from([*SMOLLM2_KEYS, "attention.key_length", "attention.sliding_window", "ssm.state_size"])
    keys = data.draw(st.dictionaries(names, numbers, max_size=6))
    path = gguf(tmp_path_factory.mktemp("hostile") / "m.gguf", "llama", keys, {"blk.0.attn_k.weight": (8, 8)})
    try:
        found = estimate(path, engine="llamacpp", context=512, slots=1)
    except PressroomError:
        return
    assert found.total >= found.weights > 0 and found.later >= 0


# --- estimates ------------------------------------------------------------


def test_llamacpp_takes_its_kv_cache_from_the_start(tmp_path: Path) -> None:
    model = smollm2_gguf(tmp_path / "m.gguf")
    one = estimate(model, engine="llamacpp", context=2048, slots=1)
    four = estimate(model, engine="llamacpp", context=2048, slots=4)
    assert one.kv_cache == 2048 * SMOLLM2_TOKEN and four.kv_cache == 4 * one.kv_cache
    assert one.total == one.weights + one.kv_cache + one.overhead
    assert one.later == 512 * MIB, "the prompt cache fills with use"
    # Room is made in multiples of 256 tokens a slot.
    assert estimate(model, engine="llamacpp", context=300, slots=2).kv_cache == 2 * 512 * SMOLLM2_TOKEN
    # 0: what the engine would choose, which is the model's own 8192.
    assert estimate(model, engine="llamacpp", context=0, slots=1).kv_cache == 8192 * SMOLLM2_TOKEN


def test_options_of_llamacpp_count(tmp_path: Path) -> None:
    model = smollm2_gguf(tmp_path / "m.gguf")

    def total(**options: Any) -> int:
        return estimate(model, engine="llamacpp", context=2048, slots=2, options=options).total

    assert total() - total(cache_ram_mib=0) == 512 * MIB
    assert total(cache_ram_mib=1024) - total() == 512 * MIB
    # Without a limit in bytes it keeps as many tokens as the slots have; and always one whole prompt.
    assert total(cache_ram_mib=-1) - total(cache_ram_mib=0) == 2 * 2048 * SMOLLM2_TOKEN
    assert total(cache_ram_mib=1) - total(cache_ram_mib=0) == 2048 * SMOLLM2_TOKEN
    assert total(ubatch=2048) > total() > total(ubatch=64)
    assert total(ubatch="many") == total(), "what the engine will refuse is not counted"


def test_weights_that_are_rearranged_count_twice(tmp_path: Path) -> None:
    plain = estimate(smollm2_gguf(tmp_path / "f16.gguf"), engine="llamacpp", context=512, slots=1)
    packed = smollm2_gguf(tmp_path / "q4.gguf", "Q4_0")
    found = estimate(packed, engine="llamacpp", context=512, slots=1)
    assert "second time" in found.how and "second time" not in plain.how
    assert 1.9 * packed.stat().st_size < found.weights <= 2 * packed.stat().st_size


def test_transformers_and_vllm(tmp_path: Path) -> None:
    model = smollm2_folder(tmp_path / "m")
    found = estimate(model, engine="transformers", context=2048, slots=4)
    assert found.weights == 2 * 134_515_008
    # The batch is made half as large again as it must be, and the prompts that are being read lie beside it.
    assert found.kv_cache >= 1.5 * 4 * 2048 * SMOLLM2_TOKEN and found.later >= found.kv_cache
    wide = estimate(model, engine="transformers", context=2048, slots=4, options={"dtype": "float32"})
    assert wide.weights == 2 * found.weights and wide.kv_cache == 2 * found.kv_cache
    assert estimate(model, engine="vllm", context=2048, slots=4, options={"kv_cache_gib": 1.5}).kv_cache == 3 * GIB // 2
    # As many blocks of 128 tokens as the slots can fill, and one for each and for vLLM itself.
    assert estimate(model, engine="vllm", context=2048, slots=8).kv_cache >= 8 * 2048 * SMOLLM2_TOKEN


def test_engines_without_weights_and_unknown_ones(tmp_path: Path) -> None:
    assert 0 < estimate(None, engine="echo", context=0, slots=1).total < 128 * MIB
    model = smollm2_folder(tmp_path / "m")
    known = estimate(model, engine="transformers", context=512, slots=1)
    other = estimate(model, engine="somebody-elses", context=512, slots=1)
    assert other.total > known.total - known.later and "not known" in other.how


# --- the machine ------------------------------------------------------------


def test_the_setting_wins_and_otherwise_something_is_left() -> None:
    assert available(EnginesSettings(memory_bytes=5 * GIB)).engines == 5 * GIB
    found = available(EnginesSettings())
    assert 0 < found.engines < found.total and found.free <= found.total
    assert "less" in found.how


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def test_limits_of_cgroups_version_2(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/a.slice/b.scope\n")
    mounted = tmp_path / "cgroup"
    group(mounted / "a.slice", memory__max=str(4 * GIB), memory__current=str(GIB), memory__stat="inactive_file 1024")
    group(mounted / "a.slice/b.scope", memory__max="max", memory__current=str(GIB))
    assert container_limit(membership=tmp_path / "self", mounted=mounted) == (4 * GIB, GIB - 1024)
    group(mounted / "a.slice/b.scope", memory__max=str(2 * GIB), memory__stat=f"anon 5\ninactive_file {GIB}")
    assert container_limit(membership=tmp_path / "self", mounted=mounted) == (2 * GIB, 0)


def test_limits_of_cgroups_version_1_as_seen_in_a_container(tmp_path: Path) -> None:
    # The path is the host's; what is mounted at the root is the container's own group.
    (tmp_path / "self").write_text("9:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n")
    mounted = tmp_path / "cgroup"
    files = {"memory__limit_in_bytes": str(3 * GIB), "memory__usage_in_bytes": str(GIB)}
    group(mounted / "memory", **files, memory__stat=f"inactive_file 9\ntotal_inactive_file {GIB // 2}")
    assert container_limit(membership=tmp_path / "self", mounted=mounted) == (3 * GIB, GIB // 2)
    group(mounted / "memory", memory__limit_in_bytes="9223372036854771712")
    assert container_limit(membership=tmp_path / "self", mounted=mounted) == (0, 0)


def test_no_cgroups_and_nonsense_in_them(tmp_path: Path) -> None:
    assert container_limit(membership=tmp_path / "absent", mounted=tmp_path) == (0, 0)
    (tmp_path / "self").write_text("\n0::/../../x\nnonsense\n4:memory:\n")
    group(tmp_path / "x", memory__max="many")
    assert container_limit(membership=tmp_path / "self", mounted=tmp_path) == (0, 0)


# --- the ledger ------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Callable[..., MemoryLedger]:
    def make(policy: str = "evict", **held: int) -> MemoryLedger:
        """One with a budget of 100, in which the held ones are idle since 1, 2, 3 …"""
        found = MemoryLedger(100, policy=policy, clock=clock)
        for at, (name, size) in enumerate(held.items(), start=1):
            assert found.decide(name, size).action is Action.START
            found.use(name, idle=True, last_used=at)
        return found

    return make


Make = Callable[..., MemoryLedger]


def test_what_fits_starts_and_what_never_fits_is_refused_with_figures(ledger: Make) -> None:
    found = ledger("wait", a=60)
    decision = found.decide("b", 101)
    assert decision.action is Action.REFUSE
    assert (decision.needed, decision.allowed, decision.free, decision.taken) == (101, 100, 40, {"a": 60})
    assert "can never fit" in decision.reason and "a 0 MB" in decision.reason
    assert found.waiting() == []
    assert found.decide("b", 40).action is Action.START
    assert found.taken() == {"a": 60, "b": 40}


def test_the_three_policies(ledger: Make) -> None:
    assert ledger("wait", a=60).decide("b", 50).action is Action.WAIT
    assert ledger("refuse", a=60).decide("b", 50).action is Action.REFUSE
    decision = ledger("evict", a=60).decide("b", 50)
    assert decision.action is Action.EVICT and decision.evict == ("a",)


def test_the_longest_unused_go_and_no_more_than_needed(ledger: Make) -> None:
    assert ledger(a=20, b=30, c=40).decide("d", 30).evict == ("a",)
    assert ledger(a=20, b=30, c=40).decide("d", 50).evict == ("a", "b")
    # b alone is enough, and a alone is not.
    assert ledger(a=10, b=80).decide("d", 60).evict == ("b",)


def test_busy_ones_and_those_that_stay_are_left_alone(ledger: Make) -> None:
    found = ledger(a=40, b=40)
    found.use("a", idle=False)
    found.use("b", idle=True, evictable=False)
    assert found.decide("c", 50).action is Action.WAIT
    found.use("a", idle=True, last_used=5)
    assert found.decide("c", 50).evict == ("a",)
    found.use("a", idle=False)  # a request came before it was stopped
    assert found.decide("c", 50).action is Action.WAIT


def test_what_was_freed_for_one_is_not_given_to_another(ledger: Make) -> None:
    found = ledger(a=50, b=50)
    assert found.decide("large", 60).evict == ("a", "b")
    found.release("a")
    assert found.decide("small", 41).action is Action.WAIT
    found.release("b")
    assert found.decide("small", 41).action is Action.WAIT
    assert found.decide("small", 40).action is Action.START, "what large leaves over is anybody's"
    assert found.decide("large", 60).action is Action.START


def test_two_that_wait_do_not_both_evict_the_same(ledger: Make) -> None:
    found = ledger(a=50, b=50)
    assert found.decide("one", 50).evict == ("a",)
    assert found.decide("two", 50).evict == ("b",)
    assert found.decide("three", 50).action is Action.WAIT
    found.release("b")
    assert found.decide("one", 50).evict == ("a",)
    assert found.decide("two", 50).action is Action.START
    found.release("a")
    assert found.decide("one", 50).action is Action.START


def test_one_that_is_passed_often_goes_first_and_not_for_ever(ledger: Make, clock: Clock) -> None:
    found = ledger("wait", busy=60)
    found.use("busy", idle=False)
    for n in range(4):
        assert found.decide("large", 50).action is Action.WAIT
        assert found.decide(f"small-{n}", 5).action is Action.START
    decision = found.decide("small-4", 5)
    assert decision.action is Action.WAIT and "behind large" in decision.reason
    clock.now += 20
    assert found.decide("large", 50).action is Action.WAIT
    assert found.decide("small-4", 5).action is Action.WAIT
    for _ in range(3):
        clock.now += 20
        found.decide("large", 50)
    assert found.decide("small-4", 5).action is Action.START


def test_one_that_no_longer_asks_no_longer_waits(ledger: Make, clock: Clock) -> None:
    found = ledger(a=50, b=50)
    assert found.decide("gone", 60).action is Action.EVICT
    found.release("a")
    assert found.decide("other", 50).action is Action.WAIT
    clock.now += 31
    assert found.waiting() == []
    assert found.decide("other", 50).action is Action.START
    assert found.decide("third", 50).action is Action.EVICT
    found.withdraw("third")
    assert found.waiting() == []


def test_measured_figures_stand_in_for_estimates(ledger: Make) -> None:
    found = ledger("wait")
    assert found.decide("a", 60, later=20).action is Action.START
    found.measured("a", 30)  # 20 more may come
    assert found.taken() == {"a": 50}
    found.measured("a", 55)  # no more than was estimated
    assert found.taken() == {"a": 60}
    found.measured("a", 70)  # the estimate was wrong
    assert found.taken() == {"a": 70}
    found.measured("a", 0)  # not known
    found.measured("nobody", 5)
    assert found.taken() == {"a": 70}
    assert found.decide("b", 40).action is Action.WAIT


def test_starting_again_counts_without_what_it_has(ledger: Make) -> None:
    found = ledger("wait", a=80)
    assert found.decide("a", 90).action is Action.START
    assert found.taken() == {"a": 90}
    assert found.decide("b", 10).action is Action.START
    assert found.decide("a", 95).action is Action.WAIT
    assert found.taken() == {"a": 90, "b": 10}, "it keeps what it has while it waits"


def test_a_smaller_budget_stops_nothing(ledger: Make) -> None:
    found = ledger("wait", a=60)
    found.budget = 50
    assert found.taken() == {"a": 60} and found.decide("b", 1).action is Action.WAIT
    assert found.decide("c", 51).action is Action.REFUSE


NAMES = st.sampled_from("abcdefg")


class LedgerMachine(RuleBasedStateMachine):
    """The ledger driven at random by callers that do as they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = MemoryLedger(100, policy="evict", clock=self.clock)
        self.running: dict[str, tuple[int, bool, float]] = {}  # bytes, idle, last use
        self.wanted: dict[str, int] = {}
        self.leaving: set[str] = set()
        self.overrun = 0

    @rule(name=NAMES, need=st.integers(1, 120))
    def ask(self, name: str, need: int) -> None:
        if name in self.running:
            return
        self.clock.now += 0.2
        idle_before = {n for n, (_, idle, _) in self.running.items() if idle}
        decision = self.ledger.decide(name, need)
        self.wanted.pop(name, None)
        match decision.action:
            case Action.START:
                self.running[name] = (need, False, self.clock.now)
                assert sum(size for size, _, _ in self.running.values()) <= 100, "over budget after a start"
            case Action.REFUSE:
                assert need > 100
            case Action.WAIT:
                self.wanted[name] = need
            case Action.EVICT:
                self.wanted[name] = need
                chosen = decision.evict
                assert set(chosen) <= idle_before, "only idle ones are evicted"
                uses = [self.running[one][2] for one in chosen]
                assert uses == sorted(uses), "the longest unused first"
                free = 100 - sum(size for size, _, _ in self.running.values())
                sizes = [self.running[one][0] for one in chosen]
                assert free + sum(sizes) >= need, "it is enough"
                self.leaving |= set(chosen)

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def evicted(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.leaving)))
        self.leaving.discard(name)
        if self.running.get(name, (0, False, 0.0))[1]:
            del self.running[name]
            self.ledger.release(name)

    @rule(name=NAMES, idle=st.booleans())
    def used(self, name: str, idle: bool) -> None:
        if name in self.running:
            self.clock.now += 0.1
            self.running[name] = (self.running[name][0], idle, self.clock.now)
            self.ledger.use(name, idle=idle)

    @rule(name=NAMES)
    def stopped(self, name: str) -> None:
        self.running.pop(name, None)
        self.leaving.discard(name)
        self.ledger.release(name)

    @rule(name=NAMES)
    def changed_mind(self, name: str) -> None:
        self.wanted.pop(name, None)
        self.ledger.withdraw(name)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def books_agree(self) -> None:
        assert self.ledger.taken() == {name: size for name, (size, _, _) in self.running.items()}
        assert set(self.ledger.waiting()) <= set(self.wanted)

    def teardown(self) -> None:
        # Nobody waits for ever: once all are idle and everybody goes on asking, each gets its turn.
        for name in list(self.running):
            self.ledger.use(name, idle=True)
        waiting = dict(self.wanted)
        for _ in range(400):
            if not waiting:
                break
            self.clock.now += 1.0
            for name, need in list(waiting.items()):
                decision = self.ledger.decide(name, need)
                if decision.action is Action.START:
                    del waiting[name]
                    self.ledger.use(name, idle=True)
                for one in decision.evict:
                    self.ledger.release(one)
        assert not waiting, f"{waiting} wait for each other"


LedgerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


@given(
    held=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9), st.booleans()), max_size=6), need=st.integers(1, 100)
)
@settings(deadline=None)
def test_who_is_evicted(held: list[tuple[int, int, bool]], need: int) -> None:
    """None of those that go could stay, and none that was used longer ago could have gone instead of a later one."""
    found = MemoryLedger(100)
    kept: dict[str, tuple[int, int, bool]] = {}
    for n, (size, used, idle) in enumerate(held):
        if found.decide(f"m{n}", size).action is not Action.START:
            found.withdraw(f"m{n}")
            continue
        found.use(f"m{n}", idle=idle, last_used=used)
        kept[f"m{n}"] = (size, used, idle)
    decision = found.decide("new", need)
    free = 100 - sum(size for size, _, _ in kept.values())
    could = free + sum(size for size, _, idle in kept.values() if idle)
    expected = Action.START if need <= free else Action.EVICT if need <= could else Action.WAIT
    assert decision.action is expected
    if expected is Action.EVICT:
        sizes = {name: kept[name][0] for name in decision.evict}
        assert free + sum(sizes.values()) >= need
        assert all(free + sum(sizes.values()) - size < need for size in sizes.values()), "no more than needed"
        spared = [name for name, (_, _, idle) in kept.items() if idle and name not in sizes]
        latest = max(kept[name][1] for name in sizes)
        for name in spared:
            if kept[name][1] < latest:  # it was used longer ago: then it alone would not have spared the latest
                longer = [size for size, used, idle in kept.values() if idle and used < latest]
                assert free + sum(longer) < need


def test_many_threads_never_share_a_byte() -> None:
    found = MemoryLedger(100, policy="wait")
    most = 0
    running = 0
    lock = threading.Lock()

    def work(name: str) -> None:
        nonlocal most, running
        chance = random.Random(name)
        for _ in range(200):
            need = chance.randrange(1, 60)
            if found.decide(name, need).action is Action.START:
                with lock:
                    running += need
                    most = max(most, running)
                found.measured(name, need)
                with lock:
                    running -= need
                found.release(name)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most <= 100 and found.taken() == {}


# --- the real engine ------------------------------------------------------------


def ask(endpoint: Endpoint, prompt: list[int] | str, count: int = 8) -> None:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=600)
    try:
        body = {"model": "m", "prompt": prompt, "max_tokens": count, "temperature": 0}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()
    finally:
        connection.close()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def start(engine: str, **spec: Any) -> Any:
        made.append(create(engine, EngineSpec(name="m", log=tmp_path / "engine.log", **spec)))
        return made[-1], made[-1].start()

    yield start
    for engine in made:
        engine.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("context", "slots"), [(512, 1), (2048, 4)])
def test_the_real_engine_takes_what_was_estimated(
    smollm2: Path, started: Callable[..., Any], context: int, slots: int
) -> None:
    options = {"cache_ram_mib": 0}
    found = estimate(smollm2, engine="llamacpp", context=context, slots=slots, options=options)
    engine, endpoint = started("llamacpp", model=smollm2, context=context, slots=slots, threads=1, options=options)
    chance = random.Random(1)
    ask(endpoint, [chance.randrange(100, 40_000) for _ in range(480)])  # a whole step
    askers = [
        threading.Thread(target=ask, args=(endpoint, [chance.randrange(100, 40_000) for _ in range(40)]))
        for _ in range(slots)
    ]
    for one in askers:
        one.start()
    for one in askers:
        one.join()
    measured = engine.health().peak_memory_bytes
    assert measured <= found.total <= 1.5 * measured, f"{found.total / measured:.3f} of {measured}: {found.how}"


@pytest.mark.slow
def test_the_echo_takes_what_was_estimated(started: Callable[..., Any]) -> None:
    engine, endpoint = started("echo")
    for _ in range(20):
        ask(endpoint, "a word and another")
    found = estimate(None, engine="echo", context=0, slots=1)
    measured = engine.health().peak_memory_bytes
    assert measured <= found.total <= 1.5 * measured
