"""What a model guesses with, as its runtime asks for it; and whether that can be."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from edgellm.arch import Architecture, ModelConfig, architecture_of
from edgellm.engine.opening import open_file, resolve
from edgellm.engine.runner import Runner
from edgellm.engine.speculation.drafter import Drafter
from edgellm.engine.speculation.lookup import Lookup
from edgellm.engine.speculation.speculator import NO_SPECULATION, Speculator
from edgellm.errors import FileProblem, UsageError
from edgellm.params import RuntimeConfig
from edgellm.text import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from edgellm.engine.speculation.draft import OtherModel, OwnLayers

MOST_PADDED = 128  # tokens that one vocabulary may have behind those that both share


def speculator_of(
    runtime: RuntimeConfig, runner: Runner, architecture: Architecture, n_ctx: int, tokenizer: Tokenizer
) -> Speculator:
    """What `runtime` asks for. Raises UsageError for a draft that does not fit, FileProblem for one that cannot run."""
    if runtime.speculate == "off":
        return NO_SPECULATION
    drafters: list[Drafter] = [Lookup()]
    if runtime.draft is not None or runtime.draft_layers is not None:
        from edgellm.engine.speculation.draft import Draft  # most starts have none

        if runtime.draft is not None:
            drafters.append(Draft(_other_model(runtime.draft, runtime, runner, n_ctx, tokenizer)))
        if runtime.draft_layers is not None:
            drafters.append(Draft(_own_layers(runtime.draft_layers, runner, architecture)))
    return Speculator(drafters, runtime.draft_max, is_measured=runtime.speculate == "auto")


def _own_layers(n: int, runner: Runner, architecture: Architecture) -> OwnLayers:
    from edgellm.engine.speculation.draft import OwnLayers

    config = runner.config
    if n >= config.n_layers:
        raise UsageError(
            f"draft_layers is {n}, and the model has {config.n_layers} layers; choose fewer, such as "
            f"{config.n_layers // 2 or 1}",
            parameter="draft_layers",
        )
    if config.n_shared_layers:
        raise UsageError(
            f"draft_layers is {n}, and layers of this model share keys and values, so that none can be left out; leave "
            "draft_layers out",
            parameter="draft_layers",
        )
    if runner.cache.states is not None:
        raise UsageError(
            f"draft_layers is {n}, and layers of this model keep states, which guesses of its first layers would "
            "change; leave draft_layers out",
            parameter="draft_layers",
        )
    return OwnLayers(runner, runner.first_layers(architecture, _shortened(config, n)))


def _shortened(config: ModelConfig, n: int) -> ModelConfig:
    by_layer = {name: getattr(config, name)[:n] for name in ("windows", "rotates", "layers")}
    return replace(config, n_layers=n, **by_layer)


def _other_model(
    draft: str | os.PathLike[str], runtime: RuntimeConfig, runner: Runner, n_ctx: int, tokenizer: Tokenizer
) -> OtherModel:
    from edgellm.engine.speculation.draft import OtherModel

    path = resolve(draft)
    file = open_file(path)
    try:
        architecture = architecture_of(file.metadata)
        config = architecture.configure(file.metadata)
        _check_vocabulary(load_tokenizer(file.metadata), tokenizer, draft)
        own_ctx = min(n_ctx, config.n_ctx_train)
        plain = RuntimeConfig(own_ctx, runtime.n_threads, runtime.n_batch, activations=runtime.activations)
        return OtherModel(Runner(file, architecture, config, own_ctx, plain, team=runner.team), own_ctx)
    except FileProblem as problem:
        raise type(problem)(f"the draft {path}: {problem}") from None


def _check_vocabulary(own: Tokenizer, other: Tokenizer, draft: str | os.PathLike[str]) -> None:
    """Raise UsageError unless a draft's tokens are those of the model; padding at the end may differ."""
    n = min(own.n_vocab, other.n_vocab)
    for token_id in range(n):
        if own.token_bytes(token_id) != other.token_bytes(token_id):
            raise UsageError(
                f"the draft {os.fspath(draft)!r} has another vocabulary: its token {token_id} is "
                f"{own.token_name(token_id)!r:.40}, and the model's is {other.token_name(token_id)!r:.40}; a draft "
                "must be of the same family",
                parameter="draft",
            )
    if max(own.n_vocab, other.n_vocab) > n + MOST_PADDED:
        raise UsageError(
            f"the draft {os.fspath(draft)!r} has a vocabulary of {own.n_vocab} tokens and the model one of "
            f"{other.n_vocab}; a draft must be of the same family",
            parameter="draft",
        )
