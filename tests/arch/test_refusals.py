"""What a file says that cannot be run ends in one line that names it, at once and in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import edgellm
from edgellm.arch import ARCHITECTURES
from edgellm.errors import EdgellmError, FormatError, MemoryLimitError, UnsupportedError, UsageError
from tests.spending import within

from . import tiny

SECONDS = 1.0
PYTHON_BYTES = 8 << 20  # NumPy's arrays are among them


def load_error(path, **runtime) -> EdgellmError:
    """The error that loading ends in: one line, naming the file."""
    error = within(SECONDS, lambda: refused(path, **runtime))
    message = str(error)
    assert "\n" not in message and len(message) < 400
    return error


def refused(path, **runtime) -> EdgellmError:
    tracemalloc.start()
    try:
        with pytest.raises(EdgellmError) as raised:
            edgellm.load(path, **runtime)
        assert tracemalloc.get_traced_memory()[1] < PYTHON_BYTES
    finally:
        tracemalloc.stop()
    return raised.value


def saved(checkpoint: tiny.Checkpoint, tmp_path, metadata=None, tensors=None):
    """The checkpoint's file with some entries changed; None takes one away."""

    def changed(old, new):
        return {key: value for key, value in (old | (new or {})).items() if value is not None}

    return tiny.Checkpoint(
        checkpoint.model, changed(checkpoint.metadata, metadata), changed(checkpoint.tensors, tensors)
    ).save(tmp_path / "bad.gguf")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_tensor_is_needed_and_has_its_shape(family, tmp_path, request) -> None:
    checkpoint = request.getfixturevalue(family)
    for name in checkpoint.tensors:
        if name == "output.weight" or (name.startswith("blk.") and not name.startswith("blk.1.")):
            continue  # the embeddings serve instead; layers are alike
        error = load_error(saved(checkpoint, tmp_path, tensors={name: None}))
        assert isinstance(error, FormatError) and repr(name) in str(error)
        x = checkpoint.tensors[name]
        for wrong in (x[:-1], x[None], np.concatenate([x, x], axis=-1), x.ravel()[0].reshape(())):
            error = load_error(saved(checkpoint, tmp_path, tensors={name: wrong}))
            assert isinstance(error, FormatError) and ("shape" in str(error) or "rows" in str(error))


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q_norm.weight", "blk.1.ffn_gate_exps.weight", "blk.2.attn_q.weight", "mm.weight"]
)
def test_a_tensor_without_a_place(name, llama, tmp_path) -> None:
    error = load_error(saved(llama, tmp_path, tensors={name: np.ones(64, np.float32)}))
    assert isinstance(error, UnsupportedError) and repr(name) in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "mamba"),
        ("general.architecture", "x" * 100_000),
        ("llama.rope.scaling.type", "su"),
        ("tokenizer.ggml.model", "rwkv"),
    ],
)
def test_unsupported(key, value, llama, tmp_path) -> None:
    error = load_error(saved(llama, tmp_path, {key: value, "llama.rope.scaling.factor": 2.0}))
    assert isinstance(error, UnsupportedError)
    assert key in str(error) or str(value)[:50] in str(error)


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_soft_capping(key, gemma3, tmp_path) -> None:
    error = load_error(saved(gemma3, tmp_path, {f"gemma3.{key}": 30.0}))
    assert isinstance(error, UnsupportedError) and key in str(error)


def test_layers_of_different_shapes(llama, tmp_path) -> None:
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        assert key in str(load_error(saved(llama, tmp_path, {f"llama.{key}": [4, 2]})))


COUNTS = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
          "attention.head_count_kv", "attention.key_length", "rope.dimension_count")  # fmt: skip


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, [2, 2], 2**63, np.uint64(2**64 - 1)])
def test_counts_that_are_none(key, value, llama, tmp_path) -> None:
    error = load_error(saved(llama, tmp_path, {f"llama.{key}": value}))
    assert f"llama.{key}" in str(error)


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1", False])
def test_numbers_that_are_none(key, value, llama, tmp_path) -> None:
    if (key, value) == ("rope.scaling.factor", 0.0):
        return  # no scaling
    error = load_error(saved(llama, tmp_path, {f"llama.{key}": value}))
    assert isinstance(error, FormatError) and f"llama.{key}" in str(error)


@pytest.mark.parametrize(
    "more",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 0},
        {"rope.scaling.type": "linear"},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 0.0, "rope.scaling.original_context_length": 0},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": 7, "rope.scaling.factor": 1.0},
        {"rope.scale_linear": 0.0},
        {"rope.scaling.type": "none", "rope.scale_linear": 4.0},
        {"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0},
        {"attention.scale": 0.0},
        {"attention.sliding_window": 0},
        {"attention.causal": True, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0},
        {"residual_scale": 1.0, "logit_scale": 0.0, "embedding_scale": 1, "rope.freq_base_swa": 1e6},
        {"swiglu_clamp_exp": np.zeros(2, np.float32), "attention.temperature_scale": 0.0},
        {"attention.sliding_window_pattern": "x"},
        {"expert_count": "none"},
        {"expert_count": 0.0},
        {"vocab_size": "x"},
        {"rope.scaling.original_context_length": "x"},
    ],
    ids=str,
)
def test_keys_that_change_nothing(more, llama, tmp_path) -> None:
    """llama.cpp takes 0 for "none" there; and what nobody needs may hold what it likes."""
    configure = ARCHITECTURES["llama"].configure
    assert configure(llama.metadata | {f"llama.{key}": x for key, x in more.items()}) == configure(llama.metadata)
    edgellm.load(saved(llama, tmp_path, {f"llama.{key}": x for key, x in more.items()})).close()


def test_linear_scaling_by_either_key(llama) -> None:
    configure = ARCHITECTURES["llama"].configure
    for more in ({"rope.scaling.factor": 4.0}, {"rope.scale_linear": 4.0},
                 {"rope.scaling.factor": 4.0, "rope.scaling.type": "linear", "rope.scale_linear": 2.0}):  # fmt: skip
        assert configure(llama.metadata | {f"llama.{key}": x for key, x in more.items()}).rope_scale == 4.0


@pytest.mark.parametrize("key", ["general.architecture", *(f"llama.{key}" for key in COUNTS[:5])])
def test_missing_keys(key, llama, tmp_path) -> None:
    error = load_error(saved(llama, tmp_path, {key: None}))
    assert isinstance(error, FormatError) and repr(key) in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 4096),
        ("attention.head_count", 4096),
        ("attention.head_count_kv", 3),
        ("embedding_length", 1 << 20),
        ("feed_forward_length", 1 << 24),
        ("rope.dimension_count", 15),
        ("rope.dimension_count", 1 << 31),
    ],
)
def test_sizes_that_the_file_does_not_have(key, value, llama, tmp_path) -> None:
    assert isinstance(load_error(saved(llama, tmp_path, {f"llama.{key}": value})), FormatError)


def test_huge_heads(llama, tmp_path) -> None:
    lengths = {f"llama.attention.{name}_length": 1 << 14 for name in ("key", "value")}
    assert isinstance(load_error(saved(llama, tmp_path, lengths)), FormatError)


def test_a_window_of_nothing(gemma3, tmp_path) -> None:
    for value in (0, None, 1 << 40):
        assert "sliding_window" in str(load_error(saved(gemma3, tmp_path, {"gemma3.attention.sliding_window": value})))


def test_gemma3_of_27_billion_scales_its_queries_by_the_width_per_head(gemma3) -> None:
    configure = ARCHITECTURES["gemma3"].configure
    shape = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128,
             "attention.value_length": 128, "attention.head_count_kv": 16}  # fmt: skip
    metadata = gemma3.metadata | {f"gemma3.{key}": value for key, value in shape.items()}
    assert configure(metadata).attention_scale == pytest.approx(168**-0.5)
    assert configure(metadata | {"gemma3.block_count": 48}).attention_scale == pytest.approx(128**-0.5)


def test_rope_factors_that_are_none(llama, tmp_path) -> None:
    for factors in (np.zeros(8), np.full(8, np.nan), -np.ones(8)):
        error = load_error(saved(llama, tmp_path, tensors={"rope_freqs.weight": np.float32(factors)}))
        assert isinstance(error, FormatError) and "rope_freqs" in str(error)


def test_a_huge_context_is_no_huge_allocation(llama, tmp_path) -> None:
    path = saved(llama, tmp_path, {"llama.context_length": 2**32})
    with edgellm.load(path) as model:
        assert model.n_ctx == 8192
    assert isinstance(load_error(path, n_ctx=2**32), MemoryLimitError)


def test_a_context_beyond_the_model_s(llama, tmp_path) -> None:
    error = load_error(saved(llama, tmp_path), n_ctx=1025)
    assert isinstance(error, UsageError) and "1025" in str(error) and "1024" in str(error)


@pytest.mark.parametrize(
    "runtime",
    [{"n_ctx": 0}, {"n_ctx": 1.5}, {"n_ctx": "8"}, {"n_threads": 0}, {"n_threads": 100_000}, {"n_batch": 0},
     {"n_batch": None}, {"n_batch": 2.0}, {"activations": "f16"}, {"activations": None}, {"activations": 8}],
)  # fmt: skip
def test_parameters_that_cannot_work(runtime, llama, tmp_path) -> None:
    error = load_error(saved(llama, tmp_path), **runtime)
    assert isinstance(error, UsageError) and next(iter(runtime)) in str(error)


@pytest.mark.parametrize("n", [tiny.N_VOCAB - 1, tiny.N_VOCAB + 1])
def test_other_tokens_than_embeddings(n, llama, tmp_path) -> None:
    error = load_error(saved(llama, tmp_path, tiny.vocabulary(n)))
    assert isinstance(error, FormatError) and str(n) in str(error) and str(tiny.N_VOCAB) in str(error)


@pytest.mark.parametrize("kind", [3, 4, 5])
def test_added_tokens_without_a_row(kind, llama, tmp_path) -> None:
    """Their ids are known, and no prompt or answer holds them."""
    more = tiny.vocabulary(tiny.N_VOCAB + 2)
    more["tokenizer.ggml.token_type"][-2:] = [kind, kind]
    with edgellm.load(saved(llama, tmp_path, more), n_threads=1) as model:
        assert model.n_vocab == tiny.N_VOCAB and model.tokenizer.n_vocab == tiny.N_VOCAB + 2
        assert model.logits([5, tiny.N_VOCAB - 1]).shape == (2, tiny.N_VOCAB)
        with pytest.raises(UsageError, match="its embedding has"):
            model.logits([5, tiny.N_VOCAB + 1])
        with pytest.raises(UsageError, match="from 0 to"):
            model.logits([5, tiny.N_VOCAB + 2])


def test_a_role_beyond_the_vocabulary(llama, tmp_path) -> None:
    """It is told, and nothing else is wrong with the file."""
    with edgellm.load(saved(llama, tmp_path, {"tokenizer.ggml.eos_token_id": 320}), n_threads=1) as model:
        assert any("eos_token_id" in note and "320" in note for note in model.tokenizer.notes)
        assert len(model.tokenize("the tea")) > 1 and tiny.N_VOCAB not in model.tokenizer.stop_ids
