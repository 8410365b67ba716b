"""Measuring: what counts as work, and that a profile names all of it. Times are looked at for sanity only."""

from __future__ import annotations

import numpy as np
import pytest

import edgellm
from edgellm.errors import FileProblem, UsageError
from edgellm.measure import bench, limits
from edgellm.measure.bench import measure
from edgellm.measure.profile import profile
from tests.arch import tiny

LAYERS = 2
BODY_WEIGHTS = LAYERS * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)  # of the tiny Llama, all in F32
HEAD_WEIGHTS = tiny.N_VOCAB * 64


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "beyond_caches", lambda least: 1 << 23)


def test_figures(model) -> None:
    result = measure(model, n_prompt=40, n_generate=5, n_repetitions=3, depth=100)
    assert (result["n_prompt"], result["n_generate"], result["depth"], result["repetitions"]) == (40, 5, 100, 3)
    assert (result["model"], result["n_threads"]) == ("tiny.gguf", 2)
    for work in ("prefill", "decode"):
        lowest, speed, highest = (result[f"{work}_tokens_per_second{end}"] for end in ("_lowest", "", "_highest"))
        assert 0 < lowest <= speed <= highest
    assert 0 < result["prefill_share_of_multiply_limit"] < 1.2
    assert 0 < result["decode_share_of_read_limit"] < 1.2
    assert model._runner.cache.n_free_blocks == model._runner.cache.n_blocks


def test_work_is_counted_from_the_ops(model) -> None:
    result = measure(model, n_prompt=40, n_generate=5, n_repetitions=1, depth=100)
    assert result["prefill_macs_per_token"] == BODY_WEIGHTS + HEAD_WEIGHTS / 40  # one of them needs logits
    n_seen = sum(range(101, 106)) / 5
    cache_bytes = model._runner.cache.token_bytes * n_seen
    assert result["decode_bytes_per_token"] == 4 * (BODY_WEIGHTS + HEAD_WEIGHTS) + cache_bytes


def test_decode_is_compared_with_what_memory_gives_meanwhile(model, monkeypatch) -> None:
    """Half as much in the second repetition, and decode takes no longer: its share is twice as large."""
    given = iter([7e9, 40e9, 20e9, 20e9, 20e9])  # before the one that warms up, then before, between and after
    monkeypatch.setattr(limits.ReadStream, "now", lambda self: next(given))
    monkeypatch.setattr(bench, "write", lambda *args: 0.5)
    result = bench.measure(model, n_prompt=0, n_generate=5, n_repetitions=3)
    n_bytes = 5 * result["decode_bytes_per_token"]
    assert result["decode_share_of_read_limit"] == pytest.approx(n_bytes / 0.5 / 20e9)
    assert result["read_gigabytes_per_second"] >= 40


def test_a_window_bounds_what_is_read(tmp_path) -> None:
    """Seven layers of the tiny Gemma look back over 48 positions, one over all."""
    with edgellm.load(tiny.gemma3().save(tmp_path / "gemma3.gguf"), n_threads=1) as model:
        at = {depth: measure(model, 1, 1, 1, depth)["decode_bytes_per_token"] for depth in (0, 199)}
        assert at[199] - at[0] == model._runner.cache.token_bytes / 8 * (7 * 47 + 199)


@pytest.mark.parametrize("work", [{"n_prompt": 5, "n_generate": 0}, {"n_prompt": 0, "n_generate": 5}])
def test_damaged_weights_are_named(tmp_path, work: dict[str, int]) -> None:
    checkpoint = tiny.llama()
    checkpoint.tensors["blk.1.ffn_up.weight"][3] = np.nan
    with edgellm.load(checkpoint.save(tmp_path / "bad.gguf"), n_threads=1) as model:
        with pytest.raises(FileProblem, match=r"bad\.gguf: .*tensor 'blk.1.ffn_up.weight'"):
            measure(model, **work, n_repetitions=1)
        assert model._runner.cache.n_free_blocks == model._runner.cache.n_blocks


def test_only_one_of_the_two(model) -> None:
    result = measure(model, n_prompt=0, n_generate=2, n_repetitions=1)
    assert result["prefill_tokens_per_second"] is result["prefill_share_of_multiply_limit"] is None
    assert result["decode_tokens_per_second"] > 0
    result = measure(model, n_prompt=2, n_generate=0, n_repetitions=1)
    assert result["decode_tokens_per_second"] is result["decode_share_of_read_limit"] is None


def test_what_does_not_fit_is_refused(model) -> None:
    with pytest.raises(UsageError, match="1025 tokens do not fit into the context of 1024"):
        measure(model, 25, 5, depth=1000)
    with pytest.raises(UsageError, match="1025 tokens do not fit into the context of 1024"):
        profile(model, 25, depth=1000)


def test_a_profile_names_every_op(model) -> None:
    before = model.logits([1, 2, 3])
    profiles = profile(model, n_prompt=40, n_repetitions=2, depth=300)
    prefill, decode = ({row.name: row for row in profiles[name].rows} for name in ("prefill", "decode"))
    (attention,) = (row for name, row in decode.items() if name.partition(".")[0] == "attention")
    assert (profiles["prefill"].n_tokens, profiles["decode"].n_tokens) == (40, 1)

    assert prefill["linear_f32.F32"].count == 7 * LAYERS
    assert prefill["linear_f32.F32"].macs == BODY_WEIGHTS * 40
    assert prefill["linear_f32_decode.F32"].macs == HEAD_WEIGHTS  # of the only token that needs logits
    assert decode["linear_f32_decode.F32"].count == 7 * LAYERS + 1
    assert decode["linear_f32_decode.F32"].read_bytes == 4 * (BODY_WEIGHTS + HEAD_WEIGHTS)
    assert attention.read_bytes == model._runner.cache.token_bytes * 301
    assert "attention_merge" in decode  # a lone token's past is long enough to be split
    assert "attention_merge" not in prefill
    for one in profiles.values():
        assert sum(row.share for row in one.rows) == pytest.approx(1)
        assert sum(row.seconds for row in one.rows) == pytest.approx(one.seconds)
        assert [row.seconds for row in one.rows] == sorted((row.seconds for row in one.rows), reverse=True)
        assert one.seconds > 0 < one.seconds_unprofiled

    # And the model is as it was.
    assert {program.team for program in model._runner.programs} == {model._runner.team}
    assert model._runner.cache.n_free_blocks == model._runner.cache.n_blocks
    assert (model.logits([1, 2, 3]) == before).all()
