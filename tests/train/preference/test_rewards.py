"""Functions, patterns and models as rewards."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.errors import RewardError, UsageError
from edgellm.train.preference import rewards
from edgellm.train.preference.config import RewardSources
from edgellm.train.preference.rewards import Answered, PatternReward, reward_of, rewards_from, total_rewards

ANSWERS = [Answered("2 + 2?", "it is 4", [1], {"answer": "4"}), Answered("1 + 2?", "it is 5", [1], {"answer": "3"})]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda completions, answer: [float(a in c) for c, a in zip(completions, answer, strict=True)], [1, 0]),
        (lambda completions, **others: [len(others["prompts"]) + len(c) for c in completions], [9, 9]),
        (lambda prompts, completions: [p == "2 + 2?" for p in prompts], [1, 0]),
        (lambda texts: map(len, texts), [7, 7]),
        (lambda completions, *, extra=3: [extra] * len(completions), [3, 3]),
    ],
)
def test_a_function_is_given_what_its_parameters_name(function, expected) -> None:
    assert total_rewards([reward_of(function)], ANSWERS).tolist() == expected


def test_rewards_are_added_up() -> None:
    rewards = [PatternReward(r"\d"), reward_of(lambda texts: [t.endswith("4") for t in texts])]
    assert total_rewards(rewards, ANSWERS).tolist() == [2, 1]


def test_a_value_that_the_data_lacks_is_named() -> None:
    with pytest.raises(
        RewardError, match=r"wants 'truth', which the data does not have; it has prompts, completions, answer"
    ):
        total_rewards([reward_of(lambda completions, truth: [])], ANSWERS)


def test_a_function_in_a_file_and_in_a_module(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rules_here.py").write_text(
        "def short(completions):\n    return [len(c) for c in completions]\nx = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    for place in ("rules_here.py:short", str(tmp_path / "rules_here.py") + ":short", "rules_here:short"):
        (reward,) = rewards_from(RewardSources(reward=[place]))
        assert total_rewards([reward], ANSWERS).tolist() == [7, 7]
        assert reward.name == place
    for place, text in (
        ("rules_here.py:x", "has a value that is no function of the name x"),
        ("rules_here.py:long", "has nothing of the name long"),
        ("none.py:short", "there is no file none.py"),
        ("no_such_module:short", "cannot be imported: ModuleNotFoundError"),
        ("rules_here.py", "expected a function as module:function or file.py:function"),
        (":f", "expected a function as"),
    ):
        with pytest.raises(UsageError) as error:
            reward_of(place)
        assert text in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(UsageError, match=r"broken\.py cannot be imported: SyntaxError"):
        reward_of("broken.py:f")
    (tmp_path / "script.py").write_text("import sys\n\nsys.exit(3)\n")
    with pytest.raises(UsageError, match=r"script\.py cannot be imported: SystemExit: 3"):
        reward_of("script.py:f")


def test_what_gives_no_reward() -> None:
    with pytest.raises(UsageError, match="which is no regular expression"):
        rewards_from(RewardSources(reward_regex=["("]))
    with pytest.raises(UsageError, match=r"reward_regex is ''; .* found in every answer"):
        rewards_from(RewardSources(reward_regex=""))
    with pytest.raises(UsageError, match="reward_model is nowhere, which is no folder"):
        rewards_from(RewardSources(reward_model=["nowhere"]))
    with pytest.raises(UsageError, match="reward is missing"):
        rewards_from(RewardSources())
    with pytest.raises(UsageError, match="rewards is 5"):
        reward_of(5)


async def _later(completions):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda texts: ["1.5"] * len(texts), "gave '1.5' for the answer 'it is 4'; expected a number"),
        (lambda texts: [b"1"] * len(texts), "expected a number"),
        (lambda texts: {1.0, 2.0}, "expected a list with a number for each answer"),  # in which order?
        (_later, "is an async function; expected a plain one"),
    ],
)
def test_what_could_only_be_guessed_is_refused(function, words: str) -> None:
    """And nothing else is said: a coroutine that nobody waits for would warn."""
    with pytest.raises(RewardError) as error:
        total_rewards([reward_of(function)], ANSWERS)
    assert words in str(error.value)


def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "PATTERN_SECONDS", 0.2)
    answer = Answered("?", "a" * 60, [1], {})
    with pytest.raises(RewardError, match=r"looked for 0\.2 seconds at an answer of 60 characters"):
        total_rewards([PatternReward(r"(a|aa)+$(?<!a)")], [answer])
