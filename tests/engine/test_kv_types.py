"""Models with each type of KV cache: the same bits however batches are cut, and about the same logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

import edgellm
from edgellm.cli.options import runtime_options
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.engine.kv_cache import Sequence
from edgellm.engine.runner import Span
from edgellm.errors import UsageError
from edgellm.evaluate import ORDINARY_TEXT
from edgellm.graph.cache_memory import CacheLayer
from edgellm.graph.lowering import attention
from edgellm.kernels.kv_types import CACHE_TYPES, KV_TYPES
from edgellm.measure.estimate import estimate
from edgellm.params import RuntimeConfig
from tests.arch import tiny
from tests.convert import checkpoints, families

# Mean KL divergence from the predictions with an f16 cache, in nats. Of random weights, measured 3e-4.
TINY_KL = 1e-3
# Of real models, the same.
REAL_KL = {"q8_0": 1e-3, "q4_0": 5e-3}

IDS = [3 + i * 7 % 300 for i in range(400)]


def mean_kl(reference: np.ndarray, other: np.ndarray) -> float:
    """Row by row: all at once in float64, the vocabulary of a real model takes gigabytes."""
    found = []
    for pair in zip(reference, other, strict=True):
        p, q = (x - x.max() for x in np.asarray(pair, np.float64))
        p, q = (x - np.log(np.exp(x).sum()) for x in (p, q))
        found.append((np.exp(p) * (p - q)).sum())
    return float(np.mean(found))


# The same for types of integers, and for keys of one type and values of another.
FAR = {"q8_0": TINY_KL, "q4_0": 0.1, "q8_0:q4_0": 0.1, "q4_0:f32": 0.1, "f16:q8_0": TINY_KL}


@pytest.fixture(scope="module", params=["llama", "gemma3", "heads of 48"])
def path(request, tmp_path_factory):
    checkpoint = {
        "llama": lambda: tiny.llama(),
        "gemma3": lambda: tiny.gemma3(),
        "heads of 48": lambda: tiny.llama(head_dim=48),
    }[request.param]()
    return checkpoint.save(tmp_path_factory.mktemp("kv") / "tiny.gguf")


@pytest.mark.parametrize("kind", FAR)
def test_batches_and_threads_give_the_same_bits(path, kind: str) -> None:
    def logits(n_batch: int, n_threads: int) -> np.ndarray:
        with edgellm.load(path, n_batch=n_batch, n_threads=n_threads, kv_type=kind) as model:
            return model.logits(IDS)

    whole = logits(512, 1)
    assert np.isfinite(whole).all()
    for n_batch, n_threads in [(1, 2), (3, 1), (37, 2), (255, 2)]:
        np.testing.assert_array_equal(logits(n_batch, n_threads), whole, err_msg=f"{n_batch=} {n_threads=}")


@pytest.mark.parametrize("kind", FAR)
def test_logits_are_close(path, kind: str) -> None:
    with edgellm.load(path) as exact, edgellm.load(path, kv_type=kind) as small:
        a, b = exact.logits(IDS), small.logits(IDS)
    assert not np.array_equal(a, b)
    assert mean_kl(a, b) < FAR[kind]


def with_biases(path: Path) -> Path:
    """A model whose keys have a bias that is far larger than all else in them, as those of Qwen 2.5 have."""
    checkpoint = tiny.llama(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    named = {name.replace("llama.", "qwen2."): value for name, value in checkpoint.metadata.items()}
    checkpoint.metadata = named | {"general.architecture": "qwen2"}
    rng = np.random.default_rng(4)
    for layer in range(2):
        for name, width in (("q", 64), ("k", 32), ("v", 32)):
            bias = rng.standard_normal(width, np.float32)
            if name == "k":
                bias.reshape(2, 2, 8)[..., 6:] *= 100  # of pairs that turn slowly
            checkpoint.tensors[f"blk.{layer}.attn_{name}.bias"] = bias
    return checkpoint.save(path)


def test_large_biases_of_keys_take_no_steps_from_others(tmp_path, monkeypatch) -> None:
    path = with_biases(tmp_path / "biases.gguf")

    def logits(kind: str, **more) -> np.ndarray:
        with edgellm.load(path, kv_type=kind, activations="f32", **more) as model:
            return model.logits(IDS)

    exact, small = logits("f32"), logits("q8_0")
    assert mean_kl(exact, small) < TINY_KL
    np.testing.assert_array_equal(logits("q8_0", n_batch=7, n_threads=2), small)
    monkeypatch.setattr(attention, "constant_keys", lambda *_: None)
    assert mean_kl(exact, logits("q8_0")) > 4 * mean_kl(exact, small)


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_models_say_the_same(name, request) -> None:
    """With activations in float32: where they are rounded, what the cache loses would be lost in what they lose."""
    real = request.getfixturevalue(name)
    settings = {"n_ctx": 512, "activations": "f32"}
    with edgellm.load(real, **settings) as model:
        ids = model.tokenize(ORDINARY_TEXT.read_text(encoding="utf-8"), add_special=True)[:256]
        exact = model.logits(ids)
    for kind, most in REAL_KL.items():
        with edgellm.load(real, kv_type=kind, **settings) as small:
            assert mean_kl(exact, small.logits(ids)) < most, kind


@pytest.mark.parametrize("kind", FAR)
def test_forks_and_trims(path, kind: str) -> None:
    """A forked, trimmed and regrown sequence predicts what a fresh one does."""
    with edgellm.load(path, kv_type=kind) as model:
        runner, want = model._runner, model.logits(IDS)

        def grow(sequence: Sequence, end: int, ids: list[int] = IDS) -> np.ndarray:
            sequence.reserve(end - len(sequence))
            piece = ids[len(sequence) : end]
            runner.run_body([Span(sequence, piece)])
            ((logits, _),) = runner.logits_of([len(piece) - 1])
            sequence.append(piece)
            return logits.copy()

        a = runner.cache.sequence()
        grow(a, 300)
        b = a.fork(150)
        grow(b, 153, [*IDS[:150], 5, 6, 7])  # goes its own way, in a copy of the block they share
        np.testing.assert_array_equal(grow(a, 301), want[300])
        b.trim(150)
        np.testing.assert_array_equal(grow(b, 200), want[199])
        a.trim(100)
        np.testing.assert_array_equal(grow(a, 400), want[399])


@pytest.mark.parametrize("kv_type", [*KV_TYPES, "q8_0:q4_0", "q4_0:f16"])
def test_a_chat_goes_on_from_what_is_cached(path, kv_type: str) -> None:
    with edgellm.load(path, kv_type=kv_type) as model:
        first = model.generate(IDS[:200], max_tokens=3, temperature=0)
        list(first)
        ids = [*IDS[:200], *first.token_ids, 9, 10]
        again = model.generate(ids, max_tokens=8, temperature=0)
        list(again)
        assert again.stats.n_reused_tokens >= 200
    with edgellm.load(path, kv_type=kv_type) as model:
        fresh = model.generate(ids, max_tokens=8, temperature=0)
        list(fresh)
    assert again.token_ids == fresh.token_ids


@pytest.mark.parametrize("kind", ["q4_0", "q8_0:q4_0"])
def test_sessions_keep_integers(path, tmp_path, kind: str) -> None:
    """A session of such a cache goes on as if it had never been away, and is refused by a cache of another type."""
    file = tmp_path / "a.session"
    with edgellm.load(path, kv_type=kind) as model:
        answer = model.generate(IDS[:200], max_tokens=3, temperature=0)
        list(answer)
        model.save_session(file, answer)
        ids = [*IDS[:200], *answer.token_ids, 9]
        want = model.generate(ids, max_tokens=6, temperature=0)
        list(want)
    with edgellm.load(path, kv_type=kind) as model:
        model.load_session(file)
        got = model.generate(ids, max_tokens=6, temperature=0)
        list(got)
        assert (got.token_ids, got.stats.n_reused_tokens >= 200) == (want.token_ids, True)
    for other in ("q8_0", "q4_0:q8_0"):
        refused = rf"another kv_type \({kind}, and here it is {other}\)"
        with edgellm.load(path, kv_type=other) as model, pytest.raises(edgellm.EdgellmError, match=refused):
            model.load_session(file)


def test_prefixes_on_disk_belong_to_a_type(path) -> None:
    """A later process finds what was computed with its own type alone, and says the same as without."""
    ids = [3 + i * 11 % 300 for i in range(700)]

    def answer(kind: str, disk_bytes: int = 1 << 30) -> tuple[list[int], int]:
        with edgellm.load(path, n_ctx=1024, kv_type=kind, disk_bytes=disk_bytes) as model:
            generation = model.generate(ids, max_tokens=4, temperature=0)
            list(generation)
            return generation.token_ids, generation.stats.n_reused_tokens

    want, none = answer("q8_0:q4_0")
    assert none == 0
    again, reused = answer("q8_0:q4_0")
    assert (again, reused >= 640) == (want, True)
    assert answer("q4_0:q8_0")[1] == 0


# Each type of keys, each of values, and what other tests compile too; every pair takes seconds to compile.
USUAL_PAIRS = ("f32", "q8_0", "q4_0", "f16:q8_0", "q8_0:q4_0", "q4_0:f16", "f16:q4_0", "f32:f16", "q4_0:f32")


@pytest.mark.parametrize("pairs", [USUAL_PAIRS, pytest.param(tuple(CACHE_TYPES), marks=pytest.mark.thorough)], ids=len)
def test_two_types_go_together(tiny_path, pairs: tuple[str, ...]) -> None:
    """Each pair gives about what float32 gives: as near as the coarser of both is, and no two pairs the same."""
    with edgellm.load(tiny_path, n_threads=1, kv_type="f32") as model:
        exact = model.logits(IDS[:100])
    seen = []
    for name in pairs:
        kind = CACHE_TYPES[name]
        with edgellm.load(tiny_path, n_threads=1, kv_type=name) as model:
            found = model.logits(IDS[:100])
        limits = [FAR.get(part.name, TINY_KL) for part in kind]
        assert mean_kl(exact, found) < max(limits), name
        assert not any(np.array_equal(found, other) for other in seen), name
        seen.append(found)


UNLIKE = ["gemma2", "gemma3n", "gemma4, shared", "lfm2", "qwen35, shared keys, every other layer", "mpt"]


@pytest.mark.parametrize("name", UNLIKE)
def test_keys_by_channel_in_all_kinds_of_attention(name: str, tmp_path) -> None:
    """Scores that are capped or biased, windows, shared keys, states beside them: always the same bits, and near."""
    families.model_of(name).save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "tiny.gguf", "F32")
    ids = [3 + i * 7 % 60 for i in range(200)]

    def logits(kind: str, n_batch: int = 512, n_threads: int = 1) -> np.ndarray:
        settings = {"n_ctx": 512, "n_batch": n_batch, "n_threads": n_threads, "activations": "f32"}
        with edgellm.load(tmp_path / "tiny.gguf", kv_type=kind, **settings) as model:
            return model.logits(ids)

    found = logits("q4_0")
    assert 0 < mean_kl(logits("f32"), found) < FAR["q4_0"]
    for n_batch, n_threads in [(1, 2), (37, 2), (100, 1)]:
        np.testing.assert_array_equal(logits("q4_0", n_batch, n_threads), found, err_msg=f"{n_batch=} {n_threads=}")


def test_memory(path) -> None:
    with edgellm.load(path) as exact, edgellm.load(path, kv_type="q8_0") as small:
        config, layers = exact.config, exact.config.n_layers
        assert exact._runner.cache.token_bytes == 2 * 2 * layers * config.n_kv_heads * config.head_dim
        groups = -(-config.head_dim // 32)
        want = 2 * layers * config.n_kv_heads * (config.head_dim + 2 * groups)
        assert small._runner.cache.token_bytes == want
    with edgellm.load(path, kv_type="q8_0:q4_0") as mixed:
        wide = -(-config.head_dim // 32) * 32
        of_values = wide // 2 + 2 * (wide // 32)
        want = layers * config.n_kv_heads * (config.head_dim + 2 * groups + of_values)
        assert mixed._runner.cache.token_bytes == want
    for kind in CACHE_TYPES.values():
        assert CacheLayer(2, 64, 64, kind).block_bytes == kind.block_bytes(2, 64, 64)


@pytest.mark.parametrize(
    "wrong", ["q4_1", "F16", "", None, 8, "q8_0:q4_1", "q8_0:", ":q4_0", "f16:f16:f16", "q8_0/q4_0"]
)
def test_other_names_are_refused(path, wrong) -> None:
    with pytest.raises(UsageError, match=r"kv_type is .*; expected one of f16, q8_0, q4_0, f32"):
        edgellm.load(path, kv_type=wrong)


def test_the_command_line(path) -> None:
    command = [sys.executable, "-m", "edgellm", "run", str(path), "--raw", "-p", "a", "-n", "2"]

    def run(*options: str) -> tuple[int, str]:
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert run("--kv-type", "q8_0:q4_0")[0] == 0
    assert run("--cache-type-k", "q8_0", "--cache-type-v", "q4_0")[0] == 0
    code, said = run("--kv-type", "q4_1")
    assert (code, "--kv-type is 'q4_1'; expected one of f16, q8_0, q4_0, f32" in said) == (2, True)
    code, said = run("--kv-type", "q8_0", "--cache-type-v", "q4_0")
    assert (code, "--cache-type-v cannot be used with --kv-type" in said) == (2, True)


def test_both_spellings_of_the_command_line(monkeypatch) -> None:
    """What llama.cpp calls --cache-type-k and --cache-type-v are the two halves of --kv-type."""

    @click.command()
    @runtime_options
    def command(runtime) -> None:
        click.echo(runtime.kv_type)

    def said(*options: str) -> str:
        return CliRunner().invoke(command, options, catch_exceptions=False).output.strip()

    assert said() == "f16"
    assert said("--kv-type", "q8_0:q4_0") == said("--cache-type-k", "q8_0", "--cache-type-v", "q4_0") == "q8_0:q4_0"
    assert said("--cache-type-v", "q8_0") == "f16:q8_0"
    assert said("--cache-type-k", "q8_0", "--cache-type-v", "q8_0") == said("--kv-type", "q8_0:q8_0") == "q8_0"


def test_the_forecast_knows_both_types(path) -> None:
    found = estimate(path, RuntimeConfig(n_ctx=256, n_threads=1, kv_type="q8_0:q4_0"))
    with edgellm.load(path, n_ctx=256, kv_type="q8_0:q4_0") as model:
        assert found.layers == tuple(model._runner.cache.blocks_of_layers())
        assert found.token_bytes == model._runner.cache.token_bytes
