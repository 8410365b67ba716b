"""llama.cpp loads what is written and means the same by it; EDGELLM_PEER is a Python that has llama-cpp-python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.convert.quantize import quantize_file

from . import checkpoints, families
from .mixtures import MIXTURES

PEER = os.environ.get("EDGELLM_PEER")
SCRIPT = Path(__file__).parents[2] / "tools" / "peer_llama_cpp.py"
pytestmark = pytest.mark.skipif(not PEER, reason="EDGELLM_PEER names no interpreter with llama-cpp-python")

# Shorter than a window: llama.cpp reads none in a Llama, and has Gemma's pattern of layers built in.
IDS = np.random.default_rng(6).integers(2, checkpoints.N_VOCAB, checkpoints.WINDOW - 2).tolist()
SAME_LOGITS = 0.02  # of float16 keys and values on both sides; logits have a standard deviation near 3
FAMILIES = [name for name in checkpoints.FAMILIES if name != "gemma3, own pattern"]
# Cases of other families that llama.cpp has too, biases, norms, windows and all.
SHARED = [
    *("llama, yarn", "llama, yarn with a factor of its own", "llama, yarn with mscale", "mistral3", "mistral3, window"),
    *("gemma", "gemma2", "gemma4", "gemma4, keys are values", "gemma4, no embeddings of layers"),
    *("phi3", "phi3, long-rope", "phi3, partial", "granite", "starcoder2", "stablelm", "stablelm, parallel", "gpt2"),
    *("gptneox", "falcon, two norms", "falcon, every head its own keys", "command-r", "cohere2", "exaone4, no window"),
    *("hunyuan-dense", "bloom", "mpt", "lfm2", "mixtral", "mixtral, window", "qwen2moe", "qwen3moe", "granitemoe"),
    *("ernie4_5-moe", "ernie4_5-moe, no shared expert", "gpt-oss, own layers", "deepseek v3", "glm 4.7 flash"),
]


def peer_logits(path: Path) -> np.ndarray:
    ids_file, logits_file = path.with_suffix(".ids.npy"), path.with_suffix(".logits.npy")
    np.save(ids_file, IDS)
    command = [str(PEER), str(SCRIPT), "logits", str(path), str(ids_file), str(logits_file)]
    subprocess.run(command, check=True, capture_output=True)
    return np.load(logits_file)


@pytest.mark.parametrize("family", FAMILIES)
def test_converted_files_mean_the_same_to_llama_cpp(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    path = tmp_path / "out.gguf"
    convert_checkpoint(tmp_path / "model", path)
    with edgellm.load(path) as model:
        own = model.logits(IDS)
    theirs = peer_logits(path)
    assert np.abs(own - theirs).mean() < SAME_LOGITS
    assert np.mean(own.argmax(-1) == theirs.argmax(-1)) > 0.95


@pytest.mark.parametrize("family", SHARED)
def test_other_families_mean_the_same_to_llama_cpp(family: str, tmp_path: Path) -> None:
    if family in MIXTURES:
        checkpoints.save(family, tmp_path / "model")
    else:
        families.model_of(family).save_pretrained(tmp_path / "model")
        checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    path = tmp_path / "out.gguf"
    convert_checkpoint(tmp_path / "model", path)
    with edgellm.load(path, activations="f32", kv_type="f32") as model:
        own = model.logits(IDS)
    theirs = peer_logits(path)
    assert np.abs(own - theirs).mean() < 0.04 * own.std()
    assert np.mean(own.argmax(-1) == theirs.argmax(-1)) > 0.9


@pytest.mark.parametrize("type_name", ["Q8_0", "Q5_1", "Q4_0", "IQ4_NL"])
def test_quantized_files_mean_the_same_to_llama_cpp(type_name: str, tmp_path: Path) -> None:
    checkpoints.save("llama", tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "f32.gguf")
    path = tmp_path / "small.gguf"
    quantize_file(tmp_path / "f32.gguf", path, type_name)
    with edgellm.load(path) as model:
        own = model.logits(IDS)
    # Both round activations to 8 bits, each in its own way.
    assert np.abs(own - peer_logits(path)).mean() < 0.05 * own.std()
