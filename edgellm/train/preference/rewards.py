"""Rewards: what says how good an answer is. A function, a regular expression, or a reward model.

A function is called with lists, one value for each answer, by the names of its parameters:

    def short(completions, **others):                      # answers as texts
        return [1.0 if len(text.split()) < 20 else 0.0 for text in completions]

    def right(completions, answer):                        # with the data's key "answer"
        return [float(a in text) for text, a in zip(completions, answer)]

    prompts     what was asked: texts, or lists of messages, as the data has them
    completions the answers as texts, without the tokens that end them
and any other key of the data. It gives a list of as many numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgellm.checks import wrong
from edgellm.engine.model import Model
from edgellm.errors import RewardError, UsageError, shown
from edgellm.files import sha256_of
from edgellm.train.data.examples import Message
from edgellm.train.preference.config import RewardSources
from edgellm.train.preference.numbers import Floats
from edgellm.train.preference.reward_model import RewardModel

PATTERN_SECONDS = 10.0  # for a regular expression and an answer: ordinary ones take far below a millisecond
MOST_REWARD = 1e12  # with far larger ones, the squares of their differences are infinite in float32


@dataclass(frozen=True)
class Answered:
    """An answer that was sampled. asked and columns: as in `Prompt`. ids: of prompt and answer."""

    asked: str | Sequence[Message]
    text: str
    ids: Sequence[int]
    columns: Mapping[str, Any] = field(default_factory=dict)


class Reward(Protocol):
    """name: what people call it."""

    name: str

    def __call__(self, answers: Sequence[Answered]) -> Iterable[Any]:
        """A number for each answer."""


class FunctionReward:
    """A function of somebody's."""

    def __init__(self, function: Callable[..., Any], name: str = "") -> None:
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._function = function
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # of builtins
            parameters = ()  # type: ignore[assignment]
        self._takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._needed = [p.name for p in parameters if p.name in self._names and p.default is p.empty]

    def __call__(self, answers: Sequence[Answered]) -> Iterable[Any]:
        texts = [answer.text for answer in answers]
        if not (self._takes_all or "completions" in self._names):
            return self._function(texts)  # type: ignore[no-any-return]
        values: dict[str, list[Any]] = {"prompts": [answer.asked for answer in answers], "completions": texts}
        for key in dict.fromkeys(key for answer in answers for key in answer.columns):
            values[key] = [answer.columns.get(key) for answer in answers]
        if missing := [name for name in self._needed if name not in values]:
            raise RewardError(
                f"the reward {self.name} wants {missing[0]!r}, which the data does not have; it has {', '.join(values)}"
            )
        if not self._takes_all:
            values = {name: value for name, value in values.items() if name in self._names}
        return self._function(**values)  # type: ignore[no-any-return]


class PatternReward:
    """1 for answers in which a regular expression is found, 0 for others."""

    def __init__(self, pattern: str) -> None:
        import regex  # unlike re, it ends a search that takes for ever

        if not pattern:
            raise wrong("reward_regex", pattern, "a regular expression; this one is found in every answer")
        self.name = f"regular expression {shown(pattern)}"
        try:
            self._pattern = regex.compile(pattern, regex.DOTALL)
        except (regex.error, RecursionError, OverflowError) as problem:
            raise UsageError(
                f"reward_regex is {shown(pattern)}, which is no regular expression: {problem}", parameter="reward_regex"
            ) from None

    def __call__(self, answers: Sequence[Answered]) -> Iterable[Any]:
        return [float(self._is_in(answer.text)) for answer in answers]

    def _is_in(self, text: str) -> bool:
        try:
            return self._pattern.search(text, timeout=PATTERN_SECONDS) is not None
        except TimeoutError:
            raise RewardError(
                f"the reward {self.name} looked for {PATTERN_SECONDS:g} seconds at an answer of {len(text):,} "
                "characters; write it without repetitions inside of repetitions"
            ) from None


class ModelReward:
    """A reward model, which reads prompt and answer."""

    def __init__(self, model: RewardModel, name: str = "reward model") -> None:
        self.name, self._model = name, model

    def __call__(self, answers: Sequence[Answered]) -> Iterable[Any]:
        return self._model.of_tokens([answer.ids for answer in answers]).tolist()  # type: ignore[no-any-return]


class FolderReward:
    """A reward model in a folder, beside the model that is trained: it is opened when that is there."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name, self._folder = f"model {os.fspath(folder)}", folder
        self._opened: ModelReward | None = None

    def digest(self) -> str:
        """Of its files."""
        files = sorted(path for path in Path(self._folder).glob("adapter_*") if path.is_file())
        return " ".join(f"{path.name} {sha256_of(path)}" for path in files)

    @contextmanager
    def opened(self, model: Model) -> Iterator[None]:
        with closing(RewardModel(model, self._folder)) as found:
            self._opened = ModelReward(found)
            try:
                yield
            finally:
                self._opened = None

    def __call__(self, answers: Sequence[Answered]) -> Iterable[Any]:
        assert self._opened is not None
        return self._opened(answers)


def reward_of(reward: Any) -> Reward:
    """A reward from what people give: a RewardModel or its folder, a function, or a text that says where one is.

    Raises UsageError for what is none of these, or cannot be imported.
    """
    if isinstance(reward, (FunctionReward, PatternReward, ModelReward, FolderReward)):
        return reward
    if isinstance(reward, (str, os.PathLike)) and os.path.isdir(reward):
        return FolderReward(reward)
    if isinstance(reward, RewardModel):
        return ModelReward(reward)
    if isinstance(reward, str):
        return FunctionReward(imported(reward), reward)
    if callable(reward):
        return FunctionReward(reward)
    raise wrong("rewards", reward, "functions, texts such as 'rules.py:short', or a RewardModel")


def rewards_from(sources: RewardSources) -> list[Reward]:
    """The rewards that somebody named. Raises UsageError when there are none, or one cannot be had."""
    found: list[Reward] = [FunctionReward(imported(place), place) for place in sources.reward]
    found += [PatternReward(pattern) for pattern in sources.reward_regex]
    for folder in sources.reward_model:
        if not os.path.isdir(folder):
            raise UsageError(f"reward_model is {folder}, which is no folder", parameter="reward_model")
        found.append(FolderReward(folder))
    if not found:
        raise UsageError(
            "reward is missing: name a function (reward), a regular expression (reward_regex) or the folder of a model "
            "that was trained to judge (reward_model)",
            parameter="reward",
        )
    return found


def imported(place: str) -> Callable[..., Any]:
    """The function at "module:function" or "file.py:function". Raises UsageError."""
    source, _, name = place.rpartition(":")
    if not source or not name.isidentifier():
        raise wrong("reward", place, "a function as module:function or file.py:function")
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise UsageError(f"reward is {place}, and there is no file {source}", parameter="reward")
    try:
        module = _module_of_file(Path(source)) if is_file else _module(source)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # whatever the code of others raises, SystemExit too
        raise UsageError(
            f"reward is {place}, and {source} cannot be imported: {_told(problem)}", parameter="reward"
        ) from problem
    function = getattr(module, name, None)
    if not callable(function):
        has = "a value that is no function" if hasattr(module, name) else "nothing"
        raise UsageError(f"reward is {place}, and {source} has {has} of the name {name}", parameter="reward")
    return function  # type: ignore[no-any-return]


def _module(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:  # as with `python -m`
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _module_of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"edgellm_reward_{path.stem}", path.resolve())
    assert spec is not None and spec.loader is not None  # of a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def total_rewards(rewards: Sequence[Reward], answers: Sequence[Answered]) -> Floats:
    """The sum of all rewards of each answer: float64 [n]. Raises RewardError, which names the reward at fault."""
    total = np.zeros(len(answers))
    for reward in rewards:
        total += _checked(reward, answers)
    return total


def _checked(reward: Reward, answers: Sequence[Answered]) -> Floats:
    name = reward.name
    try:
        given = reward(answers)
        # The order of a set is nobody's, so whose reward is which could only be guessed.
        is_list = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping, Set))
        values = list(islice(given, len(answers) + 1)) if is_list else []  # it may never end
    except (RewardError, KeyboardInterrupt):
        raise
    except BaseException as problem:  # whatever the code of others raises, SystemExit too
        raise RewardError(f"the reward {name} raised {_told(problem)}") from problem
    if inspect.iscoroutine(given):
        given.close()  # it would warn that nobody waited for it
        raise RewardError(
            f"the reward {name} is an async function; expected a plain one, which gives its numbers itself"
        )
    if not is_list:
        raise RewardError(f"the reward {name} gave {shown(given)}; expected a list with a number for each answer")
    if len(values) != len(answers):
        count = f"more than {len(answers)}" if len(values) > len(answers) else len(values)
        raise RewardError(f"the reward {name} gave {count} values for {len(answers)} answers; expected one for each")
    found = np.empty(len(values))
    for n, value in enumerate(values):
        try:
            found[n] = np.nan if isinstance(value, (str, bytes, bytearray)) else float(value)
        except (TypeError, ValueError, OverflowError):
            found[n] = np.nan
        if not abs(found[n]) <= MOST_REWARD:
            raise RewardError(
                f"the reward {name} gave {shown(value)} for the answer {shown(answers[n].text)}; expected a number"
                f"{f' of at most {MOST_REWARD:g}' if np.isfinite(found[n]) else ''}"
            )
    return found


def _told(problem: BaseException) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
