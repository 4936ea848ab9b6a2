"""A model of transformers logged, registered, aliased and loaded again through MLflow, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pressroom.kernel import Workspace
from pressroom.registry import Registry

pytestmark = pytest.mark.slow

# In a process of its own: torch and transformers are not for the memory of all other tests.
_LOG = """
import os, sys
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", HF_HUB_OFFLINE="1")
import mlflow, torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

root, tracking, weights = sys.argv[1:]
words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "</s>": 3}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>")
torch.manual_seed(int(weights))
sizes = dict(vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)
mlflow.set_tracking_uri(tracking)
mlflow.set_registry_uri(f"pressroom://{root}")
found = mlflow.get_experiment_by_name("tuning")
id = found.experiment_id if found else mlflow.create_experiment("tuning", artifact_location=f"pressroom://{root}")
with mlflow.start_run(experiment_id=id):
    mlflow.transformers.log_model(
        transformers_model={"model": model, "tokenizer": tokenizer},
        name="tiny",
        task="text-generation",
        registered_model_name="tiny",
        pip_requirements=["torch"],
    )
client = mlflow.MlflowClient()
newest = max(int(version.version) for version in client.search_model_versions("name = 'tiny'"))
client.set_registered_model_alias("tiny", "production", newest)
print(newest)
"""
_LOAD = """
import os, sys
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", HF_HUB_OFFLINE="1")
import mlflow, torch
from transformers import LlamaConfig, LlamaForCausalLM

root, tracking, uri, weights = sys.argv[1:]
mlflow.set_tracking_uri(tracking)
mlflow.set_registry_uri(f"pressroom://{root}")
loaded = mlflow.transformers.load_model(uri, return_type="components")
torch.manual_seed(int(weights))
sizes = dict(vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
expected = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).state_dict()
got = loaded["model"].state_dict()
assert list(got) == list(expected)
for name, tensor in expected.items():
    assert got[name].dtype == torch.bfloat16
    assert torch.equal(got[name].view(torch.int16), tensor.view(torch.int16)), name
assert loaded["tokenizer"]("a b")["input_ids"] == [0, 1]
print("equal")
"""


def python(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_logged_registered_aliased_and_loaded(workspace: Workspace, tmp_path: Path) -> None:
    places = (str(workspace.root), f"sqlite:///{tmp_path}/tracking.db")
    assert python(_LOG, *places, "1") == "1"
    assert python(_LOG, *places, "2") == "2"
    # Each in a process that has seen nothing of what came before.
    assert python(_LOAD, *places, "models:/tiny/1", "1") == "equal"
    assert python(_LOAD, *places, "models:/tiny@production", "2") == "equal"
    registry = Registry(workspace)
    versions = registry.list("tiny")
    assert [version.aliases for version in versions] == [(), ("production",)]
    assert all(version.run for version in versions)
    for version in versions:
        assert {"MLmodel", "model/model.safetensors", "model/config.json"} <= {entry.path for entry in version.files}
        for entry in version.files:
            registry.store.verify(entry.blob)
    shared = [{entry.blob for entry in version.files} for version in versions]
    assert shared[0] & shared[1]  # the tokenizer and the licence are held once
