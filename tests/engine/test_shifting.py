"""Endless text: an answer goes on when the context is full, as the plain rule says, in all ways to compute it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgellm
from edgellm.engine.shifting import SINKS, Shift, latest_turns
from edgellm.errors import ContextOverflowError, UsageError
from edgellm.params import SamplingParams
from edgellm.text.chat_template import ChatTemplate
from tests.arch import tiny
from tests.convert import checkpoints, families
from tests.engine.test_asking import ASKED, NOTHING, RANDOM
from tests.text.calls.templates import TEMPLATES
from tests.text.test_reasoning import TEMPLATES as THINKING

N_CTX = 96
PROMPT = [3 + i * 7 % 300 for i in range(50)]
# Of the tokens that end the texts of these models, none may come.
NO_END = dict.fromkeys((2, *checkpoints.tokenizer().all_special_ids), float("-inf"))
GREEDY: dict[str, Any] = {"temperature": 0.0, "logit_bias": NO_END}
SHIFTED: dict[str, Any] = {**GREEDY, "when_full": "shift", "max_tokens": 3 * N_CTX}


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "lfm2", "qwen35"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of full attention, of windows, of learned positions, and two of states."""
    folder = tmp_path_factory.mktemp("shifting")
    if request.param == "llama":
        return tiny.llama().save(folder / "tiny.gguf")
    if request.param == "gemma3":
        return tiny.gemma3().save(folder / "tiny.gguf")
    from edgellm.convert.checkpoints import convert_checkpoint

    families.model_of(request.param).save_pretrained(folder / "of")
    checkpoints.tokenizer().save_pretrained(folder / "of")
    convert_checkpoint(folder / "of", folder / "tiny.gguf", "Q8_0")
    return folder / "tiny.gguf"


def loaded(path: Path, **options: Any) -> edgellm.Model:
    return edgellm.load(path, **({"n_threads": 1, "disk_bytes": 0, "n_ctx": N_CTX} | options))


def ended(answer: edgellm.Generation) -> edgellm.Generation:
    list(answer)
    return answer


def in_pieces(model: edgellm.Model, n_tokens: int, n_first: int) -> list[int]:
    """The plain rule: an answer that ends with the context, and another one to what stays of the text."""
    text, read = list(PROMPT), list(PROMPT)
    while len(text) < len(PROMPT) + n_tokens:
        piece = ended(model.generate(read, **GREEDY))
        assert piece.finish_reason == "context"
        text += piece.token_ids
        read = text[:n_first] + text[-((model.n_ctx - n_first) // 2) :]
    return text[len(PROMPT) : len(PROMPT) + n_tokens]


def test_an_answer_goes_on_from_its_beginning_and_its_end(path: Path) -> None:
    with loaded(path) as model:
        want = in_pieces(model, SHIFTED["max_tokens"], SINKS)
        answer = ended(model.generate(PROMPT, **SHIFTED))
    assert (answer.token_ids, answer.finish_reason) == (want, "length")
    stats = answer.stats
    assert (stats.n_generated_tokens, stats.n_prompt_tokens) == (len(want), len(PROMPT))
    assert stats.n_shifts == 6 and stats.n_left_out_tokens == len(PROMPT) + len(want) - len(answer.text_ids)
    assert len(answer.text_ids) <= N_CTX + 1 and answer.text_ids[:SINKS] == PROMPT[:SINKS]


@pytest.mark.parametrize("n_keep", [0, 1, 20, len(PROMPT), -1, 1000])
def test_what_stays(path: Path, n_keep: int) -> None:
    n_first = len(PROMPT) if n_keep < 0 else min(n_keep, len(PROMPT))
    with loaded(path) as model:
        want = in_pieces(model, SHIFTED["max_tokens"], n_first)
        answer = ended(model.generate(PROMPT, n_keep=n_keep, **SHIFTED))
        if n_keep == -1 and model._runner.cache.states is None:  # it is in the cache, and not computed again
            assert ended(model.generate(PROMPT, max_tokens=1)).stats.n_reused_tokens > 0
    assert answer.token_ids == want and answer.text_ids[:n_first] == PROMPT[:n_first]


@pytest.mark.parametrize(
    "how", [{"speculate": "always"}, {"n_batch": 7, "n_threads": 2}, {"kv_type": "q8_0:q4_0"}, {"kv_type": "q4_0"}]
)
def test_every_way_to_compute_gives_the_same(path: Path, how: dict[str, Any]) -> None:
    with loaded(path, **({"kv_type": how["kv_type"]} if "kv_type" in how else {}), speculate="off") as model:
        want = in_pieces(model, SHIFTED["max_tokens"], SINKS)
    with loaded(path, **how) as model:
        assert ended(model.generate(PROMPT, **SHIFTED)).token_ids == want


def test_beside_others_and_where_room_is_short(path: Path) -> None:
    """Answers of different lengths, in threads, in a cache with room for two of them."""
    prompts = [PROMPT[i : 30 + 3 * i] for i in range(6)]
    with loaded(path) as model:
        want = [ended(model.generate(prompt, **SHIFTED)).token_ids for prompt in prompts]
        room = model._runner.cache.n_bytes // 4
    with loaded(path, cache_bytes=max(room, 1)) as model:
        answers = [model.generate(prompt, **SHIFTED) for prompt in prompts]
        threads = [threading.Thread(target=ended, args=(answer,)) for answer in answers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.token_ids for answer in answers] == want
        batched = model.batch(prompts, n_parallel=3, **SHIFTED)
        assert [answer.token_ids for answer in batched] == want
        model._scheduler.update_requests()
        model._scheduler.prefixes.clear()
        assert model._runner.cache.n_free_blocks == model._runner.cache.n_blocks


def test_a_seed_and_what_looks_back_on_the_whole_text(model) -> None:
    """Repetitions count from before the shift, too: no token comes twice in an answer of several contexts."""
    asked = {**RANDOM, "when_full": "shift", "seed": 7, "logit_bias": NO_END}
    with loaded(model.path) as small:
        first, second = (ended(small.generate(PROMPT, max_tokens=250, **asked)).token_ids for _ in range(2))
        assert first == second and len(set(first)) < 250
        asked |= {"presence_penalty": 1e6, "repeat_last_n": -1}
        answer = ended(small.generate(PROMPT, max_tokens=200, **asked))
    assert len(set(answer.token_ids) | set(PROMPT)) == 200 + len(set(PROMPT))
    assert answer.stats.n_shifts > 1


def test_texts_that_stop_and_texts_that_never_come(model) -> None:
    with loaded(model.path, n_ctx=64) as small:
        plain = ended(small.generate(PROMPT, **SHIFTED))
        whole = plain.content
        for start in range(30, len(whole) - 6, 9):
            string = whole[start : start + 3]
            answer = ended(small.generate(PROMPT, stop=string, **SHIFTED))
            assert answer.content == whole[: whole.index(string)]
            other = ended(small.generate(PROMPT, banned_strings=[string], **SHIFTED))
            assert string not in other.content and other.stats.n_generated_tokens == len(other.token_ids)


def test_a_banned_text_that_is_longer_than_what_is_read_of_the_answer(model) -> None:
    """Taking it back reaches behind the shift: what came before is read again."""
    with loaded(model.path, n_ctx=16) as small:
        prompt = PROMPT[:12]
        whole = ended(small.generate(prompt, **GREEDY, when_full="shift", max_tokens=60))
        string = small.detokenize(whole.token_ids[2:40])
        answer = ended(small.generate(prompt, **GREEDY, when_full="shift", max_tokens=60, banned_strings=[string]))
    assert string in whole.content and string not in answer.content
    assert answer.token_ids[:2] == whole.token_ids[:2]


@pytest.mark.parametrize("n_ctx", [1, 2, 3, 5, 8])
def test_the_smallest_contexts(model, n_ctx: int) -> None:
    with loaded(model.path, n_ctx=n_ctx) as small:
        answer = ended(small.generate([5], **GREEDY, when_full="shift", max_tokens=40))
    assert len(answer.token_ids) == 40 and answer.stats.n_shifts >= 40 // n_ctx - 1


def test_what_cannot_be(model) -> None:
    with loaded(model.path) as small:
        for asked, words in (
            ({"n_keep": 4}, "n_keep is 4, but when_full is not 'shift'"),
            ({"n_keep": -2, "when_full": "shift"}, "n_keep is -2; expected a number of at least -1"),
            ({"n_keep": 90, "when_full": "shift"}, "n_keep is 90, but with when_full='shift' at most 72 tokens"),
            ({"n_keep": -1, "when_full": "shift"}, r"n_keep is -1 \(all 90 tokens of the prompt\)"),
            ({"when_full": "drop"}, "when_full is 'drop'; expected one of stop, shift"),
        ):
            with pytest.raises(UsageError, match=words):
                small.generate([5] * 90, **asked)
        with pytest.raises(ContextOverflowError):
            small.generate([5] * (N_CTX + 1), when_full="shift")
        assert ended(small.generate(PROMPT, **GREEDY)).finish_reason == "context"


# --- chats ------------------------------------------------------------------------------------------------------

CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.mark.parametrize(("n_ctx", "n_turns"), [(512, 12), (256, 5), (128, 3)])
def test_of_a_chat_the_oldest_turns_go_whole(model, n_ctx: int, n_turns: int) -> None:
    system = [{"role": "system", "content": "sys"}]
    turns = [{"role": role, "content": f"{role[0]}{i}"} for i in range(n_turns) for role in ("user", "assistant")]
    turns = turns[:-1]
    with loaded(model.path, n_ctx=n_ctx) as small:
        small.chat_template = template = ChatTemplate(CHATML)
        prompts = [small.tokenize(template.render([*system, *turns[2 * k :]]), parse_special=True)
                   for k in range(n_turns)]  # fmt: skip
        fitting = next(prompt for prompt in prompts if len(prompt) <= n_ctx // 4)
        answer = ended(small.chat([*system, *turns], **{**SHIFTED, "max_tokens": 2 * n_ctx}))
        assert answer.stats.n_shifts and len(answer.token_ids) == 2 * n_ctx
        assert answer.text_ids[: len(fitting)] == fitting and fitting != prompts[0]
        n_last = len(answer.text_ids) - len(fitting)
        assert answer.text_ids[len(fitting) :] == answer.token_ids[-n_last:]
        kept = ended(small.chat([*system, *turns], n_keep=10, **{**SHIFTED, "max_tokens": n_ctx}))
        assert kept.text_ids[:10] == prompts[0][:10]  # tokens are counted where they are asked for
        assert kept.text_ids[10:] == [*prompts[0], *kept.token_ids][-(len(kept.text_ids) - 10) :]


def test_a_template_that_refuses_what_is_left(model) -> None:
    """Then tokens are left out."""
    messages = [{"role": "user", "content": f"u{i}"} for i in range(4)]
    refusing = "{% if messages | length < 4 %}{{ raise_exception('too few') }}{% endif %}"
    with loaded(model.path, n_ctx=128) as small:
        small.chat_template = ChatTemplate(CHATML + refusing)
        prompt = small.tokenize(small.chat_template.render(messages), parse_special=True)
        answer = ended(small.chat(messages, **{**SHIFTED, "max_tokens": 300}))
    assert len(answer.token_ids) == 300 and answer.text_ids[:SINKS] == prompt[:SINKS]


def test_what_goes_wrong_in_a_shift_ends_that_answer_alone(model, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(model.path) as small:
        want = ended(small.generate(PROMPT, **SHIFTED)).token_ids
        good, bad = small.generate(PROMPT, **SHIFTED), small.generate(PROMPT[:40], **SHIFTED)
        monkeypatch.setattr(bad._answer, "shift", lambda: 1 // 0)
        bad.go_on()
        assert ended(good).token_ids == want
        with pytest.raises(ZeroDivisionError):
            ended(bad)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    room=st.integers(0, 300),
    n_system=st.integers(0, 2),
)
def test_the_latest_turns_that_fit(lengths: list[int], room: int, n_system: int) -> None:
    system: list[dict[str, Any]] = [{"role": "system", "ids": [0] * 5}] * n_system
    turns = [{"role": role, "ids": [i + 1] * n} for i, n in enumerate(lengths) for role in ("user", "assistant")]
    within = latest_turns([*system, *turns], lambda some: [token for message in some for token in message["ids"]])
    choices = [[0] * 5 * n_system + [t for m in turns[2 * k :] for t in m["ids"]] for k in range(len(lengths))]
    fitting = [choice for choice in choices if len(choice) <= room]
    assert list(within(room)) == (fitting[0] if fitting else [])


@given(
    n_ctx=st.integers(1, 60), n_virtual=st.integers(0, 5), n_prompt=st.integers(1, 60), n_more=st.integers(1, 200),
    n_keep=st.none() | st.integers(-1, 60), n_turns=st.none() | st.integers(0, 60),
)  # fmt: skip
def test_what_is_read_on_always_leaves_room(n_ctx, n_virtual, n_prompt, n_more, n_keep, n_turns) -> None:
    if n_virtual + n_prompt > n_ctx:
        return
    whole = list(range(n_virtual + n_prompt + n_more))
    params = SamplingParams(when_full="shift", n_keep=n_keep)
    within = None if n_turns is None else lambda room: [-1] * n_turns if n_turns <= room else []
    try:
        shift = Shift(params, n_virtual + n_prompt, n_ctx, n_virtual, within)
    except UsageError:
        assert n_keep is not None
        return
    read, n_last = shift.read_of(whole)
    assert 1 <= len(read) <= n_ctx and (len(read) < n_ctx or n_ctx - n_virtual < 5 or len(whole) <= n_ctx)
    assert n_last >= 1 and read[-n_last:] == whole[-n_last:]
    assert read[:n_virtual] == whole[:n_virtual]


# --- answers with a form ----------------------------------------------------------------------------------------


def test_json_longer_than_the_context_is_valid(model) -> None:
    schema = {
        "type": "object",
        "properties": {
            "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99},
                        "minItems": 120, "maxItems": 120},
            "names": {"type": "array", "items": {"enum": ["one", "two", "three"]}, "minItems": 40, "maxItems": 40},
        },
        "required": ["numbers", "names"],
        "additionalProperties": False,
    }  # fmt: skip
    with loaded(model.path, n_ctx=64) as small:
        for seed in range(3):
            asked = {**RANDOM, "seed": seed, "response_format": schema}
            answer = ended(small.generate(PROMPT, when_full="shift", **asked))
            assert answer.finish_reason == "stop" and answer.stats.n_shifts > 5
            found = json.loads(answer.content)
            jsonschema.validate(found, schema)
            assert (len(found["numbers"]), len(found["names"])) == (120, 40)
            stopped = ended(small.generate(PROMPT, **asked))
            assert stopped.finish_reason in ("context", "stop") and len(stopped.token_ids) < len(answer.token_ids)


def test_json_is_brought_to_its_end_by_max_tokens_not_by_the_context(model) -> None:
    endless = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}}
    bracket = {i: -100.0 for i in range(model.n_vocab) if b"]" in model.tokenizer.token_bytes(i)}
    with loaded(model.path, n_ctx=64) as small:
        answer = ended(small.generate(PROMPT, when_full="shift", response_format=endless, max_tokens=300, seed=1,
                                      logit_bias=bracket, **RANDOM))  # fmt: skip
    jsonschema.validate(json.loads(answer.content), endless)
    assert answer.finish_reason == "stop" and 200 < len(answer.token_ids) <= 300


@pytest.mark.parametrize("name", [name for name in THINKING if name != "none"])
def test_a_thought_longer_than_the_context_ends_and_is_followed_by_the_answer(model, name: str) -> None:
    with loaded(model.path, n_ctx=160) as small:
        small.chat_template = ChatTemplate(THINKING[name][0])
        thinks = {"think": True} if name in ("empty", "told") else {}
        n_thoughts = 0
        for seed in range(3):
            answer = ended(small.chat(ASKED, choices=["yes", "no"], think_budget=300, seed=seed, when_full="shift",
                                      **thinks, **RANDOM))  # fmt: skip
            assert answer.finish_reason == "stop" and answer.content in ("yes", "no")
            if answer.stats.n_shifts:
                n_thoughts += bool(answer.reasoning)
        reasoning = small.chat_template.reasoning
        assert n_thoughts or reasoning is None or not reasoning.is_open(small.chat_template.render(ASKED))


@pytest.mark.parametrize("name", ["hermes", "mistral", "llama 3"])
def test_a_call_longer_than_the_context_can_be_made(model, name: str) -> None:
    numbers = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 150,
               "maxItems": 150}  # fmt: skip
    wanted = {"type": "object", "properties": {"numbers": numbers}, "required": ["numbers"],
              "additionalProperties": False}  # fmt: skip
    tools = [{"type": "function", "function": {"name": n, "description": "x", "parameters": parameters}}
             for n, parameters in (("add", wanted), ("nothing", NOTHING))]  # fmt: skip
    with loaded(model.path, n_ctx=640) as small:
        small.chat_template = ChatTemplate(TEMPLATES[name])
        answer = ended(small.chat(ASKED, tools=tools, tool_choice="add", parallel_tool_calls=False, when_full="shift",
                                  seed=1, **RANDOM))  # fmt: skip
    assert answer.stats.n_shifts and answer.finish_reason == "stop"
    jsonschema.validate(answer.tool_calls[0].arguments, wanted)
