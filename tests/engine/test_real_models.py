"""The default model, with its real weights."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.formats.gguf import GGUFFile, GGUFWriter

# Mean Kullback-Leibler divergence from float32 of llama.cpp, over 512 tokens. edgellm should do no worse.
LLAMA_CPP_DIVERGENCE = 0.0037
N_TOKENS = 128
# Beside the file and the KV cache: Python, NumPy, LLVM, machine code and activations.
OTHER_MEBIBYTES = 150
TEXT = Path(__file__).parents[2] / "edgellm" / "evaluate" / "ordinary.txt"


@pytest.fixture(scope="module")
def model(smollm2):
    with edgellm.load(smollm2, n_threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def ids(model) -> list[int]:
    return model.tokenize(TEXT.read_text(encoding="utf-8"))[:N_TOKENS]


@pytest.fixture(scope="module")
def reference(smollm2, ids, tmp_path_factory) -> np.ndarray:
    """float32 [N_TOKENS, n_vocab] that transformers computes from the same weights.

    In a file without their vocabulary, which takes it most of a minute to read.
    """
    import gguf
    import torch
    import transformers

    path = tmp_path_factory.mktemp("weights") / "weights.gguf"
    with GGUFFile.open(smollm2) as file:
        metadata = {key: value for key, value in file.metadata.items() if not key.startswith("tokenizer.")}
        GGUFWriter(path, metadata, [(t.name, t.shape, t.format, t.raw) for t in file.tensors.values()]).write()
    transformers.logging.set_verbosity_error()
    with pytest.MonkeyPatch.context() as patch:  # it makes the same table for every module
        patch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
        transformer = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    path.unlink()
    with torch.no_grad():
        return transformer.eval()(torch.tensor([ids])).logits[0].numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.filterwarnings("ignore")  # of what transformers does to read a GGUF file
def test_as_near_to_float32_as_llama_cpp(model, ids, reference) -> None:
    p, q = log_softmax(reference), log_softmax(model.logits(ids))
    divergence = (np.exp(p) * (p - q)).sum(axis=1).mean()
    assert 0 <= divergence < LLAMA_CPP_DIVERGENCE
    assert (p.argmax(axis=1) == q.argmax(axis=1)).mean() > 0.95


def test_the_capital_of_france(model) -> None:
    assert "Paris" in "".join(model.generate("The capital of France is", temperature=0.0, max_tokens=8))


def test_a_chat_goes_on_from_the_cache(model) -> None:
    messages = [{"role": "user", "content": "What is 2+2?"}]
    first = model.chat(messages, temperature=0.0, max_tokens=60)
    answer = "".join(first)
    assert "4" in answer and "<|im_" not in answer
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And 3+3?"}]
    second = model.chat(messages, temperature=0.0, max_tokens=30)
    assert "".join(second)
    assert second.stats.n_reused_tokens >= first.stats.n_prompt_tokens


def test_batches_and_threads_give_the_same_bits(model, smollm2, ids) -> None:
    whole = model.logits(ids)
    for n_batch, n_threads in [(1, 2), (2, 1), (37, 2)]:
        with edgellm.load(smollm2, n_batch=n_batch, n_threads=n_threads) as other:
            np.testing.assert_array_equal(other.logits(ids[:70]), whole[:70])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_whole_process(model, smollm2, ids) -> None:
    code = f"""
import re, edgellm
with edgellm.load({str(smollm2)!r}, n_threads=2) as model:
    list(model.generate({ids!r}, max_tokens=20, temperature=0.0))
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""  # not getrusage, which counts what this process had when it forked
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    cache_bytes = model._runner.cache.token_bytes * (len(ids) + 20)
    limit = (smollm2.stat().st_size + cache_bytes) / 1024 + OTHER_MEBIBYTES * 1024
    assert int(done.stdout) < limit
