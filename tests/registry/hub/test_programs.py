"""The programs people use, as they run them: a process of their own, with HF_ENDPOINT and HF_TOKEN and nothing else."""

from __future__ import annotations

from pathlib import Path

from .serving import HubServer, Tool, files_of, write
from .weights import SMOL, noise_bytes

TRANSFORMERS = """
    import torch, transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["<unk>", "</s>", "big", "small", "world"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=5, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True,
    ))
    tokenizer.push_to_hub("tiny")
    pushed = model.push_to_hub("tiny")
    back = AutoModelForCausalLM.from_pretrained("tiny")
    words = AutoTokenizer.from_pretrained("local/tiny")
    same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values()))
    first = AutoTokenizer.from_pretrained("tiny", revision="1")
    ids = words("big small world")["input_ids"]
    show({"same": same, "ids": ids, "first": first("world")["input_ids"], "oid": pushed.oid,
          "type": type(back).__name__})
"""


def test_transformers_pushes_and_loads(hub: HubServer, tool: Tool) -> None:
    shown = tool.python(TRANSFORMERS, HF_TOKEN=hub.key())
    assert shown["same"] and shown["type"] == "LlamaForCausalLM"
    assert shown["ids"] == [2, 3, 4] and shown["first"] == [4]
    version = hub.registry.get("tiny")
    assert version.digest[7:47] == shown["oid"] and version.metadata["architecture"] == "LlamaForCausalLM"
    assert "hub.incomplete" in hub.registry.get("tiny:1").tags and "hub.incomplete" not in version.tags


def test_the_command_hf(hub: HubServer, tool: Tool, smol: Path, tmp_path: Path) -> None:
    hub.add("smollm2", smol)
    where = tmp_path / "there"
    tool.hf("download", "smollm2", "--local-dir", str(where))
    assert files_of(where) == SMOL
    tool.hf("download", "local/smollm2", "config.json", "--revision", "1")
    secret = hub.key()
    assert "local" in tool.hf("auth", "whoami", HF_TOKEN=secret).stdout
    write(where, {"new.txt": b"new"})
    tool.hf("upload", "fresh", str(where), HF_TOKEN=secret)
    fresh = hub.registry.get("fresh")
    assert {entry.path for entry in fresh.files} == {*SMOL, "new.txt"}
    tool.hf("upload", "local/fresh", str(where / "new.txt"), "b.txt", "--commit-message", "one", HF_TOKEN=secret)
    assert hub.registry.get("fresh:2").description == "one"
    refused = tool.hf("upload", "fresh", str(where), check=False)
    assert refused.returncode != 0


def test_pushes_over_xet(hub: HubServer, tool: Tool, tmp_path: Path) -> None:
    """What clients do that have hf_xet: chunks that were sent once are not sent again, also not across pushes."""
    first = {
        "config.json": SMOL["config.json"],
        "model-1.safetensors": noise_bytes(1, 700_000),
        "model-2.safetensors": noise_bytes(2, 300_000),
        "words.npz": b"word after word " * 40_000,
    }
    second = {**first, "model-1.safetensors": noise_bytes(1, 700_000)[:-1] + b"x"}
    write(tmp_path / "a", first)
    write(tmp_path / "b", second)
    program = """
        from huggingface_hub import HfApi
        api = HfApi()
        api.create_repo("m")
        one = api.upload_folder(repo_id="local/m", folder_path="a")
        two = api.upload_folder(repo_id="local/m", folder_path="b")
        show([one.oid, two.oid])
    """
    received = []
    figures = hub.gateway.metrics.hub
    assert figures is not None
    oids = tool.python(program, HF_TOKEN=hub.key())
    received.append(figures.received)
    assert ("PUT", 200) not in figures.requests
    versions = hub.registry.list("m")
    assert [version.digest[7:47] for version in versions] == oids
    for number, files in ((1, first), (2, second)):
        for entry in hub.registry.get(f"m:{number}").files:
            with hub.registry.store.open(entry.blob) as file:
                assert file.read() == files[entry.path]
    assert figures.received < 1_500_000  # 1,640,000 bytes, twice, of which words pack well
    session = [name for name in hub.spooled() if name.startswith("xet-")]
    assert hub.spooled() == session and len(session) == 1
    assert list((hub.workspace.dir / "tmp" / "hub" / session[0]).iterdir()) == []
    # Another process: its client remembers what it sent.
    before = figures.received
    write(tmp_path / "c", {**second, "model-2.safetensors": noise_bytes(2, 300_000)[:-1] + b"y"})
    tool.python(
        "from huggingface_hub import HfApi\nHfApi().upload_folder(repo_id='m', folder_path='c')\nshow(1)",
        HF_TOKEN=hub.key("admin", name="second"),
    )
    with hub.registry.store.open(hub.registry.get("m:3").files[2].blob) as file:
        assert file.read() == noise_bytes(2, 300_000)[:-1] + b"y"
    assert figures.received - before < 2_000_000


def test_a_wrong_key_is_said_plainly(hub: HubServer, tool: Tool, smol: Path) -> None:
    hub.add("smollm2", smol)
    refused = tool.hf("download", "smollm2", HF_TOKEN="pr-wrong", check=False)
    assert refused.returncode != 0
    assert "not known here" in refused.stdout + refused.stderr
