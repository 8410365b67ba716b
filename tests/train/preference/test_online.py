"""Learning from rewards for the model's own answers: sampling, rewards, and runs on a small model."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgellm.arch.adapters import save_adapter
from edgellm.engine.drawing import Drawn, draw
from edgellm.errors import FileProblem, FormatError, RewardError, UsageError
from edgellm.train.checkpoint import Checkpoints
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.documents import Documents
from edgellm.train.preference import policy
from edgellm.train.preference.config import GrpoConfig, PpoConfig, RewardConfig
from edgellm.train.preference.online import Online
from edgellm.train.preference.policy import PolicyLearner
from edgellm.train.preference.reward_learner import RewardTask
from edgellm.train.preference.rollout import Answer, Kept
from edgellm.train.preference.tasks import task_of
from edgellm.train.run import train, train_adapter
from tests.train.preference.test_offline import preferences, write  # noqa: F401  # fixtures
from tests.train.test_lora import learner_of

GRPO = GrpoConfig(num_generations=4, max_new_tokens=6, beta=0.01)
PPO = PpoConfig(num_generations=4, max_new_tokens=6, num_iterations=2, beta=0.01)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", [{"prompt": f"say {n}", "answer": n} for n in range(24)])


def small_ids(completions, **others):
    """The part of an answer that is made of letters of the first half of the alphabet and signs before it."""
    return [float(np.mean([ord(c) < 110 for c in text] or [0])) for text in completions]


def run(model, data: Path, config, rewards, settings: TrainConfig, **more):
    task = task_of(config, rewards)
    return train_adapter(model, [data], LoraConfig(rank=4), settings, DataConfig(), task=task, **more)


def test_answers_longer_than_any_context_are_refused(model, prompts: Path) -> None:
    with pytest.raises(UsageError, match=r"max_new_tokens is 1000000, and the context of this model holds \d+ tokens"):
        run(model, prompts, GrpoConfig(max_new_tokens=10**6), small_ids, TrainConfig(steps=1))


# --- sampling -----------------------------------------------------------------------------------------------


def test_answers_are_drawn_by_their_probabilities(model) -> None:
    """Of many draws, the share of each first token is its probability."""
    prompt = model.tokenize("say 5", add_special=True)
    logits = model.logits(prompt)[-1].astype(np.float64)
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    drawn = [Drawn(prompt, 1, (), (7, n)) for n in range(1000)]
    for start in range(0, len(drawn), 100):
        draw(model._scheduler, drawn[start : start + 100])
    found = np.bincount([request.answer[0] for request in drawn], minlength=len(expected)) / len(drawn)
    error = np.abs(found - expected) / np.sqrt(expected * (1 - expected) / len(drawn))
    assert error.max() < 5


def test_an_answer_depends_on_its_seed_alone(model) -> None:
    prompt, other = model.tokenize("say 5", add_special=True), model.tokenize("and again something else")
    alone = Drawn(prompt, 20, model.tokenizer.stop_ids, (1, 2))
    draw(model._scheduler, [alone])
    beside = [Drawn(p, 20, model.tokenizer.stop_ids, (1, n)) for n in range(5) for p in (prompt, other)]
    with model._scheduler.alone():
        draw(model._scheduler, beside)
    assert beside[4].answer == alone.answer
    assert len({tuple(request.answer) for request in beside}) > 5
    assert all(request.has_ended or len(request.answer) == 20 for request in beside)


def test_an_answer_keeps_the_token_that_ended_it(model) -> None:
    prompt = model.tokenize("say 5", add_special=True)
    free = Drawn(prompt, 8, (), (3,))
    draw(model._scheduler, [free])
    end = free.answer[4]
    ended = Drawn(prompt, 8, {end}, (3,))
    draw(model._scheduler, [ended])
    first = free.answer.index(end)
    assert ended.answer == free.answer[: first + 1] and ended.has_ended


def test_what_is_sampled_is_the_adapter_of_the_moment(model) -> None:
    """The learner gives the answers their probabilities: a weight of an adapter makes one token certain."""
    from edgellm.train.data.encoder import Asked
    from edgellm.train.data.examples import Prompt

    ids = model.tokenize("say 5", add_special=True)
    asked = Asked(Documents.of(ids, [False] * len(ids)), Prompt("say 5"))
    with closing(learner_of(model)) as lora:
        learner = PolicyLearner(lora, GrpoConfig(max_new_tokens=1, num_iterations=2), [asked], task_of(
            GRPO, [small_ids]).rewards, None)  # fmt: skip
        answers = learner.sample([0], 400, 1)
        learner.look_at(answers)
        probability = {answer.ids[-1]: np.exp(-answer.nll[0]) for answer in answers}
        found = {token: np.mean([answer.ids[-1] == token for answer in answers]) for token in probability}
        deviations = [abs(found[t] - p) / np.sqrt(p * (1 - p) / 400) for t, p in probability.items()]
        assert max(deviations) < 5
        base = model.logits(ids)[-1].astype(np.float64)
        base = np.exp(base - base.max()) / np.exp(base - base.max()).sum()
        assert max(abs(base[t] - p) for t, p in probability.items()) > 0.02  # and not without it


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [GRPO, PpoConfig(num_generations=8, max_new_tokens=6, num_iterations=1, beta=0.01)],
    ids=["grpo", "ppo"],
)
def test_the_reward_of_held_out_prompts_rises(model, prompts: Path, tmp_path: Path, config) -> None:
    steps = []
    settings = TrainConfig(steps=24, learning_rate=0.02, warmup=0, validation=8, batch_size=4, schedule="constant")
    run(model, prompts, config, small_ids, settings, output=tmp_path / "run", callback=steps.append)
    before, after = steps[0], steps[-1]
    assert after.figures["validation_reward"] > before.figures["validation_reward"] + 0.1
    assert after.validation_loss == pytest.approx(-after.figures["validation_reward"])
    assert steps[1].figures.keys() >= {"reward", "answer_tokens", "divergence", "clipped"}
    assert steps[1].figures["answer_tokens"] <= 6
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    kept = sorted((tmp_path / "run" / "answers").iterdir())
    answers = json.loads(kept[-1].read_text())["answers"]
    assert len(answers) == 4 * config.num_generations and all(small_ids([a["text"]]) == [a["reward"]] for a in answers)


@pytest.mark.parametrize("config", [GRPO, PPO, GrpoConfig(num_generations=4, max_new_tokens=6, num_iterations=3)],
                         ids=["grpo", "ppo", "grpo with several updates"])  # fmt: skip
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_stopped_run_ends_with_the_same_bits(model, prompts: Path, tmp_path: Path, config, stop: int) -> None:
    settings = TrainConfig(steps=7, learning_rate=0.01, warmup=0, batch_size=2)
    straight, _ = run(model, prompts, config, small_ids, settings, output=tmp_path / "straight")
    stopped = tmp_path / "stopped"
    run(model, prompts, config, small_ids, settings, output=stopped, callback=lambda step: step.step == stop)
    rest, _ = run(model, prompts, config, small_ids, settings, output=stopped, resume=True)
    for name, change in straight.weights.items():
        assert change.a.tobytes() == rest.weights[name].a.tobytes()
        assert change.b.tobytes() == rest.weights[name].b.tobytes()


@pytest.mark.parametrize("damage", ["cut", "changed", "of another step", "gone"])
def test_answers_that_a_run_cannot_go_on_from(model, prompts: Path, tmp_path: Path, damage: str) -> None:
    """Others in their place would lead to other weights: the run says so, and how it can have them again."""
    settings = TrainConfig(steps=6, learning_rate=0.01, warmup=0, batch_size=2, checkpoint_every=1, keep_checkpoints=9)
    config, folder = GrpoConfig(num_generations=2, max_new_tokens=4, num_iterations=2), tmp_path / "run"
    straight, _ = run(model, prompts, config, small_ids, settings)
    run(model, prompts, config, small_ids, settings, output=folder, callback=lambda step: step.step == 3)
    kept = folder / "answers" / "step-00000002.json"
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-9])
    elif damage == "changed":
        answers = json.loads(kept.read_text())
        answers["answers"][0]["reward"] += 0.5
        kept.write_text(json.dumps(answers))
    elif damage == "of another step":
        (folder / "answers" / "step-00000000.json").rename(kept)
    else:
        kept.unlink()
    words = "step-00000002.json is not there" if damage == "gone" else "step-00000002.json is damaged"
    with pytest.raises(FileProblem, match=f"{words}, .* or remove the checkpoints of steps after 2, so that they are"):
        run(model, prompts, config, small_ids, settings, output=folder, resume=True)
    (folder / "checkpoints" / "step-00000003.safetensors").unlink()
    rest, _ = run(model, prompts, config, small_ids, settings, output=folder, resume=True)
    for name, change in straight.weights.items():
        assert change.b.tobytes() == rest.weights[name].b.tobytes()


def test_answers_of_a_run_that_was_there_before_crowd_out_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 2)
    for step in (100, 104, 0, 3, 6):
        kept.write(step, [Answer(0, "a", [1, 2], 1, float(step))])
    assert sorted(path.name for path in (tmp_path / "answers").iterdir()) == [
        "step-00000003.json", "step-00000006.json"
    ]  # fmt: skip
    assert [answer.reward for answer in kept.read(3)] == [3]


def test_a_reward_model_is_a_reward(model, prompts: Path, preferences: Path, tmp_path: Path) -> None:  # noqa: F811
    train_adapter(model, [preferences], LoraConfig(rank=2), TrainConfig(steps=5, learning_rate=0.01), DataConfig(),
                  task=RewardTask(RewardConfig()), output=tmp_path / "rewards")  # fmt: skip
    steps = []
    train(model, prompts, LoraConfig(rank=2), TrainConfig(steps=2, batch_size=2), how=GRPO,
          rewards=[str(tmp_path / "rewards"), small_ids], callback=steps.append)  # fmt: skip
    assert np.isfinite(steps[-1].figures["reward"])


def test_a_run_goes_on_with_the_reward_model_that_it_began_with(
    model,
    prompts: Path,
    preferences: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    rewards, task = tmp_path / "rewards", RewardTask(RewardConfig())
    train_adapter(model, [preferences], LoraConfig(rank=2), TrainConfig(steps=1), DataConfig(), task=task,
                  output=rewards)  # fmt: skip
    settings, out = TrainConfig(steps=3, batch_size=2), tmp_path / "out"
    run(model, prompts, GRPO, str(rewards), settings, output=out, callback=lambda step: step.step == 1)
    (rewards / "log.jsonl").unlink()  # which says nothing of any reward
    run(model, prompts, GRPO, str(rewards), settings, output=out, resume=True, callback=lambda step: step.step == 2)
    other, _ = train_adapter(model, [preferences], LoraConfig(rank=2), TrainConfig(steps=2), DataConfig(), task=task)
    save_adapter(rewards, other, model.metadata)
    with pytest.raises(UsageError, match=r"^the reward model is another than at the beginning"):
        run(model, prompts, GRPO, str(rewards), settings, output=out, resume=True)


@pytest.mark.parametrize(("fails", "text"), [
    (lambda texts: 1 / 0, "raised ZeroDivisionError: division by zero"),
    (lambda texts: [1.0], "gave 1 values for 8 answers; expected one for each"),
    (lambda texts: [float("nan")] * len(texts), "gave nan for the answer"),
    (lambda texts: [None] * len(texts), "gave None for the answer"),
    (lambda texts: None, "gave None; expected a list with a number for each answer"),
    (lambda texts: "12345678", "gave '12345678'; expected a list"),
    (lambda texts: iter(int, 1), "gave more than 8 values for 8 answers"),  # without an end
    (lambda texts: [-np.inf] * len(texts), "gave -inf for the answer"),
    (lambda texts: [1e300] * len(texts), "expected a number of at most 1e+12"),
    (lambda texts: sys.exit(0), "raised SystemExit: 0"),
])  # fmt: skip
def test_a_reward_that_fails_ends_the_run_and_loses_nothing(model, prompts: Path, tmp_path: Path, fails, text) -> None:
    calls = []

    def reward(completions):
        calls.append(1)
        return fails(completions) if len(calls) == 3 else small_ids(completions)

    settings = TrainConfig(steps=5, learning_rate=0.01, warmup=0, batch_size=2, checkpoint_every=50)
    with pytest.raises(RewardError) as error:
        run(model, prompts, GRPO, reward, settings, output=tmp_path / "run")
    assert str(error.value).endswith("; the checkpoint of step 2 is kept, and resume goes on from there")
    assert text in str(error.value) and "the reward reward" in str(error.value) and "\n" not in str(error.value)
    assert Checkpoints(tmp_path / "run" / "checkpoints", {}).steps() == [2]
    rest, _ = run(model, prompts, GRPO, reward, settings, output=tmp_path / "run", resume=True)
    straight, _ = run(model, prompts, GRPO, [small_ids], settings)
    for name, change in straight.weights.items():
        assert change.b.tobytes() == rest.weights[name].b.tobytes()


def test_other_data_and_settings(model, tmp_path: Path) -> None:
    settings = TrainConfig(steps=1, batch_size=2)
    answered = write(tmp_path / "answered.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(FormatError, match="so it is one of prompts with answers; expected prompt"):
        run(model, answered, GRPO, small_ids, settings)
    with pytest.raises(UsageError, match="rewards is empty"):
        task_of(GRPO, [])
    with pytest.raises(UsageError, match=r"rewards is {'small': .*; expected functions, texts such as"):
        task_of(GRPO, {"small": small_ids})
    with pytest.raises(UsageError, match="rewards are for GrpoConfig and PpoConfig alone"):
        task_of(RewardConfig(), [small_ids])
    with pytest.raises(UsageError, match="how is 5; expected a DpoConfig"):
        task_of(5)
    long = write(tmp_path / "long.jsonl", [{"prompt": "a b c d " * 300}])
    with pytest.raises(UsageError, match="1 are longer than 1024 tokens"):
        run(model, long, GRPO, small_ids, settings)
    assert isinstance(task_of(GRPO, small_ids), Online)


def test_an_answer_ends_when_nobody_wants_it_any_more(model) -> None:
    drawn = Drawn(model.tokenize("say 5", add_special=True), 100, (), (1,), is_enough=lambda: True)
    draw(model._scheduler, [drawn])
    assert len(drawn.answer) == 1 and not drawn.has_ended


@pytest.mark.parametrize("at", ["rewards", "sampling"])
def test_ctrl_c_while_answers_are_made_loses_nothing(
    model, prompts: Path, tmp_path: Path, at: str, monkeypatch
) -> None:
    settings = TrainConfig(steps=4, learning_rate=0.01, warmup=0, batch_size=2, checkpoint_every=50)
    straight, _ = run(model, prompts, GRPO, small_ids, settings)
    calls = []

    def asks_to_stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    def reward(completions):
        if at == "rewards":
            asks_to_stop()
        return small_ids(completions)

    usual = policy.draw
    if at == "sampling":
        monkeypatch.setattr(policy, "draw", lambda *a: (asks_to_stop(), usual(*a)))
    with pytest.raises(KeyboardInterrupt):
        run(model, prompts, GRPO, reward, settings, output=tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints", {}).steps() == [2]
    rest, _ = run(model, prompts, GRPO, reward, settings, output=tmp_path / "run", resume=True)
    for name, change in straight.weights.items():
        assert change.b.tobytes() == rest.weights[name].b.tobytes()
