"""Learning from rewards for the model's own answers: GRPO and PPO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, overload

from edgellm.errors import UsageError
from edgellm.train.config import TrainConfig
from edgellm.train.data import order
from edgellm.train.data.dataset import Summary
from edgellm.train.data.kinds import PROMPTS
from edgellm.train.documents import Documents
from edgellm.train.model_learner import DEFAULT_BATCH
from edgellm.train.preference.config import GrpoConfig, PpoConfig, RewardSources, SamplingConfig
from edgellm.train.preference.policy import HeldPrompts, PolicyLearner
from edgellm.train.preference.reference import Reference
from edgellm.train.preference.rewards import FolderReward, Reward
from edgellm.train.preference.rollout import Answer, Kept, Sampled
from edgellm.train.task import Plan, Work


class Online:
    """A task whose answers are the model's own. config says how it learns from them, and rewards how good they are."""

    kinds = PROMPTS

    def __init__(self, config: SamplingConfig, rewards: Sequence[Reward], sources: RewardSources | None = None) -> None:
        assert isinstance(config, (GrpoConfig, PpoConfig))
        self.config, self.rewards = config, rewards
        self.settings = (config, sources or RewardSources(reward=[reward.name for reward in rewards]))

    def advice(self, data: Summary, config: TrainConfig) -> list[str]:
        return []

    def digests(self) -> dict[str, str]:
        """Of reward models. What functions do nobody can tell, and one that failed may be mended."""
        folders = [reward.digest() for reward in self.rewards if isinstance(reward, FolderReward)]
        return {"reward_model_digest": " ".join(folders)} if folders else {}

    @contextmanager
    def begin(self, plan: Plan) -> Iterator[Work]:
        config = self.config
        if config.max_new_tokens > max(plan.model.n_ctx, SamplingConfig.max_new_tokens):  # the usual is cut instead
            raise UsageError(
                f"max_new_tokens is {config.max_new_tokens}, and the context of this model holds {plan.model.n_ctx} "
                "tokens with those of the prompt; expected fewer",
                parameter="max_new_tokens",
            )
        longest = max(len(asked.documents) for asked in plan.examples)
        n_batch = max(DEFAULT_BATCH, min(longest + config.max_new_tokens, plan.model.n_ctx))
        with ExitStack() as stack:
            for reward in self.rewards:
                if isinstance(reward, FolderReward):
                    stack.enter_context(reward.opened(plan.model))
            lora = stack.enter_context(closing(plan.learner(n_batch)))
            _check_room(longest, plan.model.n_ctx - lora.adapter().n_virtual)
            reference = stack.enter_context(closing(Reference(plan.model, n_batch))) if config.beta else None
            learner = PolicyLearner(lora, config, plan.examples, self.rewards, reference, plan.config.seed)
            kept = Kept(plan.folder, _n_kept(plan.config, config)) if plan.folder else None
            yield Work(learner, Rollouts(learner, plan, config, kept), lora.adapter)


class Rollouts:
    """The batches of a run; see `loop.Batches`. Each is sampled when it is first looked at, by the model of then."""

    def __init__(self, learner: PolicyLearner, plan: Plan, config: SamplingConfig, kept: Kept | None) -> None:
        self._learner, self._config, self._kept = learner, config, kept
        self._order = order.Batches(plan.n_learnt, plan.config.batch_size * plan.config.accumulate, plan.config.seed)
        self.n_batches = self._order.n_per_epoch * config.num_iterations
        held = [asked.documents for asked in plan.examples[plan.n_learnt :]]
        self.validation = [_held(held)] if held else []

    def epoch(self, number: int) -> Iterator[Updates]:
        n = self._order.n_per_epoch
        for batch in range(number * n, (number + 1) * n):
            rollout = _Rollout(self._learner, self._order.at(batch).tolist(), self._config, batch, self._kept)
            for iteration in range(self._config.num_iterations):
                yield Updates(rollout, iteration)


class _Rollout:
    def __init__(
        self, learner: PolicyLearner, numbers: Sequence[int], config: SamplingConfig, batch: int, kept: Kept | None
    ) -> None:
        self._learner, self._numbers, self._config, self._batch, self._kept = learner, numbers, config, batch, kept
        self._step = batch * config.num_iterations
        self._passes: list[Sampled] | None = None

    def passes(self, iteration: int) -> list[Sampled]:
        """The same for every update."""
        if self._passes is None:
            # A run that is gone on with in the middle of several updates has sampled already.
            answers = self._kept.read(self._step) if self._kept is not None and iteration else self._sampled()
            self._passes = self._learner.passes(answers) if answers else []
        return self._passes

    def _sampled(self) -> list[Answer]:
        answers = self._learner.sample(self._numbers, self._config.num_generations, self._batch)
        if not answers:  # somebody asked to stop
            return []
        self._learner.look_at(answers)
        if self._kept is not None:
            self._kept.write(self._step, answers)
        return answers


class Updates(Sequence[Documents]):
    """The passes of an update."""

    def __init__(self, rollout: _Rollout, iteration: int) -> None:
        self._rollout, self._iteration = rollout, iteration

    def __len__(self) -> int:
        return len(self._rollout.passes(self._iteration))

    @overload
    def __getitem__(self, index: int) -> Documents: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Documents]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._rollout.passes(self._iteration)[index]


def _check_room(longest: int, n_ctx: int) -> None:
    if longest >= n_ctx:
        raise UsageError(
            f"a prompt has {longest} tokens and the context holds {n_ctx}, which leaves no room for an answer; a lower "
            "max_length leaves such prompts out",
            parameter="max_length",
        )


def _held(prompts: Sequence[Documents]) -> HeldPrompts:
    joined = Documents.joined(prompts)
    return HeldPrompts(joined.ids, joined.lengths, joined.targets, joined.weights)


def _n_kept(train: TrainConfig, config: SamplingConfig) -> int:
    """Rollouts from which a run may go on: those since the oldest checkpoint that is kept."""
    if config.num_iterations == 1:
        return 1
    return train.checkpoint_every * train.keep_checkpoints // config.num_iterations + 2
