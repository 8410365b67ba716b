"""A reward model: how good texts are, as numbers that are to be compared with each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm import checks
from edgellm.arch.adapters import read_adapter
from edgellm.engine.adapters import LoadedAdapter
from edgellm.engine.gradients import GradientPasses
from edgellm.engine.model import Model
from edgellm.errors import ContextOverflowError, TemplateError, UsageError
from edgellm.formats.adapters import Adapter
from edgellm.train.adapter_learner import adapted_body
from edgellm.train.data import order
from edgellm.train.data.chats import ChatEncoder
from edgellm.train.data.config import DataConfig
from edgellm.train.data.encoder import Encoder
from edgellm.train.data.examples import Chat
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.documents import Documents
from edgellm.train.preference.final_norm import FinalNorm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Messages = Sequence[Mapping[str, Any]]

PASS = 256  # tokens that are read together, unless a text is longer


class RewardModel:
    """An adapter with a head of rewards (see `edgellm train reward`), beside the model that it was trained on.

        reward = edgellm.RewardModel(model, "rewards")
        reward(["The capital of France is Paris.", "No idea."])        # float32 [2]

    adapter:  a folder, or the `Adapter` that training gave.

    Raises FileProblem (or FormatError, UnsupportedError) for a folder that cannot be used, UsageError for an adapter
    that is no reward model. `close` gives its memory back.
    """

    def __init__(self, model: Model, adapter: str | os.PathLike[str] | Adapter) -> None:
        if not isinstance(model, Model):
            raise checks.wrong("model", model, "a loaded model; edgellm.load gives one")
        found = self._opened(model, adapter)
        if found.score is None or found.replaced:
            has = "whole weights" if found.replaced else "no head of rewards (score)"
            raise UsageError(f"{found.name or 'the adapter'} has {has}; expected what `edgellm train reward` makes")
        self.model, self._score = model, found.score[0].astype(np.float64)
        self._norm = FinalNorm.of(model)
        # As it was trained: in float32, and rows of a batch all have it.
        loaded = LoadedAdapter(found.name, None, found, model._runner.tensors)
        changes = {weight: [change] for weight, change in loaded.low_ranks()}
        self._graphs = adapted_body(model._runner.graphs, changes)
        self._passes: GradientPasses | None = None

    @staticmethod
    def _opened(model: Model, adapter: Any) -> Adapter:
        if not isinstance(adapter, Adapter):
            path = checks.path("adapter", adapter, "a folder that holds a reward model")
            return read_adapter(path, model.metadata, model._runner.tensors)
        adapter.check()
        adapter.check_fits(model.metadata["general.architecture"], model._runner.tensors)
        return adapter

    def __call__(self, texts: Iterable[str | Messages]) -> NDArray[np.float32]:
        """How good texts are: float32 [n]. Each is a text, prompt and answer in one, or the messages of a chat that end
        with an answer. What the model expects at the beginning and end of a text is put there.

        Raises UsageError for what is neither, ContextOverflowError for one that is longer than the context,
        TemplateError for a chat of a model without a template.
        """
        if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
            raise checks.wrong("texts", texts, "a list of texts, or of chats")
        return self.of_tokens([self._tokens(n, text) for n, text in enumerate(texts)])

    def of_tokens(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The same for token ids: float32 [n]."""
        rewards = np.empty(len(texts), np.float32)
        documents = [Documents.of(ids, [False] * len(ids)) for ids in texts]
        longest = max([PASS, *map(len, documents)])
        with self.model._scheduler.alone():
            passes = self._passes_of(longest)
            for group in order.packed([len(part) for part in documents], longest):
                joined = Documents.joined([documents[n] for n in group])
                last = passes.hidden(joined)[np.cumsum(joined.lengths) - 1]
                rewards[group] = self._norm(last) @ self._score
        return rewards

    def close(self) -> None:
        if self._passes is not None:
            self._passes.close()
            self._passes = None

    def _passes_of(self, n_batch: int) -> GradientPasses:
        if self._passes is None or self._passes.n_batch < n_batch:
            self.close()
            self._passes = GradientPasses(self.model._runner, self._graphs, {}, n_batch)
        return self._passes

    def _tokens(self, n: int, text: Any) -> list[int]:
        model = self.model
        if isinstance(text, str):
            ids = Encoder(Vocabulary(model.tokenizer, None, model.n_vocab), DataConfig()).answered(text)
        elif isinstance(text, Sequence) and text and all(isinstance(message, Mapping) for message in text):
            if model.chat_template is None:
                raise TemplateError(f"{model.path.name} is a base model without a chat template; give texts")
            chats = ChatEncoder(model.chat_template, model.tokenizer)
            answers = chats.answers(Chat(text, n_given=len(text) - 1))
            if not answers:
                raise UsageError(f"texts[{n}] does not end with an answer", parameter="texts")
            ids = answers[-1].ids.tolist()
        else:
            raise checks.wrong(f"texts[{n}]", text, "a text, or the messages of a chat")
        if not 0 < len(ids) <= model.n_ctx:
            raise ContextOverflowError(
                f"texts[{n}] has {len(ids)} tokens and the context holds {model.n_ctx}", parameter="texts"
            )
        return ids
