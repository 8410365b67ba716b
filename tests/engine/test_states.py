"""States of recurrent layers: wherever a text is taken up again, its tokens are those that it has alone, and what was
reused is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3_5ForCausalLM

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.engine import disk_cache
from edgellm.engine.kv_cache import KVCache, Sequence
from edgellm.engine.runner import Span
from edgellm.engine.states import StateShape
from edgellm.errors import CacheFullError, FormatError, UnsupportedError, UsageError
from edgellm.kernels.records import KV_BLOCK
from tests.convert import checkpoints, families

PROMPT = [3 + i * i % 300 for i in range(700)]
KINDS = {"lfm2": 1, "qwen35": 3}  # blocks from one checkpoint to the next


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("states"), {}
    for kind in KINDS:
        families.model_of(kind).save_pretrained(folder / kind)
        checkpoints.tokenizer().save_pretrained(folder / kind)
        config = json.loads((folder / kind / "config.json").read_text())
        (folder / kind / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
        found[kind] = folder / f"{kind}.gguf"
        convert_checkpoint(folder / kind, found[kind], "Q8_0")
    return found


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    return files[request.param]


def loaded(path: Path, **options: Any) -> edgellm.Model:
    return edgellm.load(path, **({"n_threads": 1, "disk_bytes": 0, "n_ctx": 1024} | options))


def answer(model: edgellm.Model, prompt: list[int], **params: Any) -> edgellm.Generation:
    generation = model.generate(prompt, **({"temperature": 0.0, "max_tokens": 6} | params))
    list(generation)
    return generation


def alone(path: Path, prompt: list[int], **params: Any) -> list[int]:
    with loaded(path) as model:
        return answer(model, prompt, **params).token_ids


def check_nothing_is_held(model: edgellm.Model) -> None:
    model._scheduler.update_requests()
    if model._scheduler.disk is not None:
        model._scheduler.disk.close()
    model._scheduler.prefixes.clear()
    cache = model._runner.cache
    assert cache.states is not None
    assert cache.states.slots.n_free == cache.states.slots.n_blocks and cache.states.slots.n_idle == 0
    assert cache.n_free_blocks == cache.n_blocks


def test_a_chat_goes_on_where_it_was(path: Path) -> None:
    with loaded(path) as model:
        first = answer(model, PROMPT)
        again = answer(model, [*first.text_ids, 9, 8, 7])
        assert again.stats.n_reused_tokens == len(PROMPT) + 5  # all but the last token, which was never computed
        other = answer(model, PROMPT[:690])  # ends before the first one did: up to the last whole block of that
        assert other.stats.n_reused_tokens == 640
        check_nothing_is_held(model)
    assert again.token_ids == alone(path, [*first.text_ids, 9, 8, 7])
    assert other.token_ids == alone(path, PROMPT[:690])


def test_texts_that_part_inside_a_prompt(files: dict[str, Path]) -> None:
    """A third one goes on where the first two have parted."""
    path = files["qwen35"]
    prompts = [PROMPT[:150] + [5 + i] * 300 for i in range(3)]
    with loaded(path) as model:
        answers = [answer(model, prompt) for prompt in prompts]
        assert [one.stats.n_reused_tokens for one in answers] == [0, 0, 128]
        check_nothing_is_held(model)
    assert [one.token_ids for one in answers] == [alone(path, prompt) for prompt in prompts]


def test_texts_side_by_side(path: Path) -> None:
    prompts = [PROMPT[:n] for n in (70, 300, 300, 64, 129)]
    with loaded(path) as model:
        answers = model.batch(prompts, temperature=0.0, max_tokens=70)
        check_nothing_is_held(model)
    assert [one.token_ids for one in answers] == [alone(path, prompt, max_tokens=70) for prompt in prompts]


@pytest.mark.parametrize("draft", KINDS)
def test_guesses_change_nothing(path: Path, draft: str, files: dict[str, Path]) -> None:
    """Right ones, of the model itself, and wrong ones, of another."""
    plain = alone(path, PROMPT[:200], max_tokens=40)
    with loaded(path, speculate="always", draft=files[draft]) as model:
        found = answer(model, PROMPT[:200], max_tokens=40)
        assert found.token_ids == plain and found.stats.n_draft_tokens > 0
        assert (found.stats.n_accepted_tokens > 20) == (draft == path.stem)
        check_nothing_is_held(model)
    with pytest.raises(UsageError, match="draft_layers is 1, and layers of this model keep states"):
        loaded(path, draft_layers=1)


def test_a_small_cache_computes_again_what_it_could_not_keep(path: Path) -> None:
    with loaded(path, n_ctx=256) as model:
        cache = model._runner.cache
        one = sum(memory.nbytes for memory in cache.memory) + sum(memory.nbytes for memory in cache.states.memory)
    prompts = [[7 + i] * 3 + PROMPT[i : i + 150] for i in range(6)]
    with loaded(path, n_ctx=256, cache_bytes=one // 6) as model:
        for _ in range(2):
            answers = model.batch(prompts, temperature=0.0, max_tokens=20)
        check_nothing_is_held(model)
    assert [found.token_ids for found in answers] == [alone(path, prompt, max_tokens=20) for prompt in prompts]


def test_sessions(path: Path, tmp_path: Path) -> None:
    session = tmp_path / "text.session"
    with loaded(path) as model:
        first = answer(model, PROMPT)
        n = model.save_session(session, first)
        assert n == len(PROMPT) + 5
        expected = answer(model, [*first.text_ids, 9, 8]).token_ids
    with loaded(path) as model:
        assert model.load_session(session).token_ids == first.text_ids[:n]
        again = answer(model, [*first.text_ids, 9, 8])
        assert again.token_ids == expected and again.stats.n_reused_tokens == n
        check_nothing_is_held(model)
        damaged = session.read_bytes()
        session.write_bytes(damaged[:-1] + bytes([damaged[-1] ^ 1]))
        with pytest.raises(FormatError, match="does not match its checksum"):
            model.load_session(session)


def test_prefixes_on_disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "prefixes_folder", lambda: tmp_path / "prefixes")
    with loaded(path, disk_bytes=1 << 30) as model:
        first = answer(model, PROMPT)
    with loaded(path, disk_bytes=1 << 30) as model:
        again = answer(model, PROMPT)
        assert again.token_ids == first.token_ids and again.stats.n_reused_tokens == 640
        check_nothing_is_held(model)


def test_any_order_of_operations_gives_the_same_states(files: dict[str, Path]) -> None:
    """Sequences that grow, fork, trim, are remembered and found: their last logits are those of the text alone."""
    random = np.random.default_rng(4)
    with loaded(files["lfm2"], n_ctx=512) as model:
        runner, cache = model._runner, model._runner.cache

        def grow(sequence: Sequence, ids: list[int]) -> np.ndarray:
            sequence.reserve(len(ids))
            assert runner.run_body([Span(sequence, ids)])
            sequence.append(ids)
            return next(iter(runner.logits_of([len(ids) - 1])))[0].copy()

        texts = [PROMPT[:300], PROMPT[:150] + PROMPT[400:550]]
        rows = [model.logits(text) for text in texts]
        live: list[tuple[int, Sequence]] = []
        for _ in range(150):
            which = int(random.integers(2))
            action = random.choice(["begin", "grow", "grow", "grow", "fork", "trim", "remember", "release"])
            if action == "begin" or not live:
                live.append((which, cache.begin(texts[which][: int(random.integers(1, 250))])))
                continue
            place = int(random.integers(len(live)))
            which, sequence = live[place]
            n = len(sequence)
            assert sequence.tokens == texts[which][:n]
            if action == "grow" and n < 290:
                more = texts[which][n : n + int(random.choice([1, 1, 5, 70]))]
                np.testing.assert_array_equal(grow(sequence, more), rows[which][n + len(more) - 1])
            elif action == "fork":
                live.append((which, sequence.fork(int(random.integers(n + 1)))))
            elif action == "trim":
                sequence.trim(int(random.integers(n + 1)))
            elif action == "remember":
                sequence.remember(whole_blocks=bool(random.integers(2)))
            elif action == "release":
                sequence.release()
                del live[place]
            if len(live) > 4:
                live.pop(0)[1].release()
        for _, sequence in live:
            sequence.release()
        check_nothing_is_held(model)


def test_a_pass_that_is_stopped_changes_nothing(path: Path) -> None:
    with loaded(path) as model:
        runner = model._runner
        rows = model.logits(PROMPT[:200])
        text = runner.cache.sequence()
        for ids, stop in ((PROMPT[:100], None), (PROMPT[300:400], lambda: True), (PROMPT[100:200], None)):
            text.reserve(len(ids))
            if runner.run_body([Span(text, ids)], stop):
                text.append(ids)
        (logits, _) = next(iter(runner.logits_of([99])))
        if len(text) == 200:  # else the pass was over before it could be stopped
            np.testing.assert_array_equal(logits, rows[199])
        text.release()
        check_nothing_is_held(model)


def shape_of(n: int) -> StateShape:
    return StateShape((64, 128), n)


def test_checkpoints_are_few() -> None:
    """In equal steps, and the last whole blocks of a prompt and of an answer; there is always room for the next one."""
    cache = KVCache([], 100, shape_of(4), 20)
    assert cache.states is not None
    text = cache.sequence()
    for n in (300, 212, 100, *[1] * 200):
        text.reserve(n)
        text.plan_states(n)
        text.append([1] * n)
    assert text.trail is not None
    assert [one.n for one in text.trail.checkpoints] == [256, 512, 576, 768, 812]
    assert text.trail.n_held == 6 and cache.states.slots.n_free == 14
    others = [cache.sequence() for _ in range(cache.states.slots.n_free)]
    for other in others:
        other.reserve(1)
    assert not cache.sequence().can_grow(1)
    with pytest.raises(CacheFullError, match="all states of recurrent layers are in use"):
        cache.sequence().reserve(1)
    text.trim(600)
    assert len(text) == 576


def test_steps_balance_states_and_keys() -> None:
    assert StateShape.beside([1000, 24], 512).step == 2
    assert StateShape.beside([1], 512).step == 1
    assert StateShape.beside([1 << 40], 512).step == 64
    assert StateShape.beside([], 512).slots_for(10) == 0


def test_vectors_are_refused(path: Path) -> None:
    with loaded(path) as model, pytest.raises(UnsupportedError, match="recurrent layers"):
        model.embed(["a"], pooling="mean")


def test_bench_stands_behind_a_depth(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.measure import limits
    from edgellm.measure.bench import measure

    monkeypatch.setattr(limits, "beyond_caches", lambda least: 1 << 23)  # how quick memory is, is not looked at here
    with loaded(path) as model:
        found = measure(model, 5, 2, n_repetitions=1, depth=KV_BLOCK + 3)
        assert found["prefill_tokens_per_second"] > 0 and found["decode_tokens_per_second"] > 0
        check_nothing_is_held(model)


def test_a_model_without_attention(tmp_path: Path) -> None:
    """All of what it knows of a text are states."""
    changes = {"layer_types": ["linear_attention"] * 3, "num_hidden_layers": 3, "full_attention_interval": 4}
    _, config_class, shape = families.FAMILIES["qwen35"]
    torch.manual_seed(1)
    usual = families.config_of("qwen35").to_dict()
    model = Qwen3_5ForCausalLM(config_class(**(usual | shape | changes))).eval()
    model.save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "out.gguf", "F32")
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT[:80]]), use_cache=False).logits[0].numpy()
    with loaded(tmp_path / "out.gguf", n_ctx=512, activations="f32", kv_type="f32") as own:
        np.testing.assert_allclose(own.logits(PROMPT[:80]), expected, atol=1e-4)
        assert len(answer(own, PROMPT[:80]).token_ids) > 0
