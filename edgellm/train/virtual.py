"""Learnt tokens before every text: prompt tuning (Lester et al., 2021), P-tuning (Liu et al., 2021) and prefix tuning
(Li and Liang, 2021).

A pass has some tokens more in front of each document, which stand for nothing; rows of tables take their places, as
embeddings or as keys and values of every layer. So a pass takes as much longer as there are more tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.gradients import Look
from edgellm.errors import UsageError
from edgellm.formats.adapters import Adapter, LayerPrefix
from edgellm.graph.adapters import EMBEDDED, Change, Prefix, Prompt, keys_values_name
from edgellm.graph.lowering import adapter_table
from edgellm.graph.nodes import Embed, KeysValues
from edgellm.train.adapter_learner import AdapterLearner
from edgellm.train.documents import NOTHING, Documents
from edgellm.train.encoder import Encoder
from edgellm.train.model_learner import Weigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.arch import ModelGraphs
    from edgellm.formats.tensor import Tensor

DOCUMENTS_TOGETHER = 8  # so many find room for their virtual tokens in a pass, beside n_batch tokens of their own,
TOKENS_TOGETHER = 2048  # unless they are more than these: what is kept for the way back takes memory
PLACES = adapter_table(0).name


def room_for(n_virtual: int) -> int:
    """Tokens of a pass that are kept free for virtual ones: those of one document at least."""
    return n_virtual * max(1, min(DOCUMENTS_TOGETHER, TOKENS_TOGETHER // n_virtual))


class VirtualLearner(AdapterLearner):
    """Tokens that stand before every text.

    Parameters are the tables, float32 [n_virtual, width]: `prompt`, or `blk.0.prefix_keys` and `blk.0.prefix_values` of
    each layer; or those of the network that makes the tables, see `Encoder`.
    """

    def changes(self) -> dict[str, list[Change]]:
        self._encoder: Encoder | None = None
        self.n_virtual = self.config.virtual_tokens
        self.n_more = room_for(self.n_virtual)
        graphs = self.model._runner.graphs
        layers = [node for node in graphs.body.nodes if isinstance(node, KeysValues)]
        tables = self._tables(graphs, layers, np.random.default_rng(self.seed))
        if self.config.method != "prefix":
            return {EMBEDDED: [Prompt(tables[0], PLACES)]}
        return {
            keys_values_name(layer): [Prefix(tables[2 * layer], tables[2 * layer + 1], PLACES)]
            for layer in range(len(layers))
        }

    def _tables(self, graphs: ModelGraphs, layers: list[KeysValues], random: np.random.Generator) -> list[Tensor]:
        config, n = self.config, self.config.virtual_tokens
        if config.method == "prefix":
            sides = ("prefix_keys", "prefix_values")
            self._names = [f"blk.{layer}.{side}" for layer in range(len(layers)) for side in sides]
            widths = [x.width for node in layers for x in (node.keys, node.values)]
        else:
            self._names, widths = ["prompt"], [graphs.hidden.width]
        if config.method == "p-tuning" or config.encoder_width:
            first = widths[0]
            inner = config.encoder_width or first
            # As in PEFT: three layers for a prompt, two for a prefix.
            if config.method == "p-tuning":
                self._encoder = Encoder(self, n, [first, inner, inner, first], "relu", random)
            else:
                self._encoder = Encoder(self, n, [first, inner, sum(widths)], "tanh", random)
            return [self.derive(name, (n, width)) for name, width in zip(self._names, widths, strict=True)]
        if config.prompt_init in ("vocabulary", "text"):
            return [self.train("prompt", self._embeddings(graphs, random))]
        size = 0.0 if config.prompt_init == "zero" else 1.0
        return [
            self.train(name, random.normal(size=(n, width)) * size)
            for name, width in zip(self._names, widths, strict=True)
        ]

    def _embeddings(self, graphs: ModelGraphs, random: np.random.Generator) -> NDArray[np.float32]:
        """Those of a text, as often as it takes, or of any tokens."""
        node = next(node for node in graphs.body.nodes if isinstance(node, Embed))
        n, model, text = self.config.virtual_tokens, self.model, self.config.prompt_text
        if self.config.prompt_init == "text":
            ids = model.tokenize(text, add_special=True)
            if not ids or max(ids) >= node.weight.shape[0]:
                raise UsageError(f"prompt_text is {text!r:.60}; expected a text that the model has embeddings of",
                                 parameter="prompt_text")  # fmt: skip
            ids = (ids * -(-n // len(ids)))[:n]
        else:
            ids = random.integers(0, node.weight.shape[0], n).tolist()
        rows = node.weight.format.dequantize(node.weight.raw[ids]).reshape(n, -1)
        return rows * np.float32(node.scale)

    def adapter(self) -> Adapter:
        """What was learnt, copied."""
        self.before_pass()
        known = {**self.parameters, **self.derived}
        tables = [known[name].copy() for name in self._names]
        architecture, base_name = self.model.metadata["general.architecture"], self.model.path.stem
        if self.config.method == "prefix":
            layers = tuple(map(LayerPrefix, tables[::2], tables[1::2]))
            return Adapter(architecture, {}, base_name=base_name, prefix=layers)
        width = (self.config.encoder_width or tables[0].shape[1]) if self._encoder else 0
        return Adapter(architecture, {}, base_name=base_name, prompt=tables[0], encoder_width=width)

    # --- the network ----------------------------------------------------------------------------------------

    def before_pass(self) -> None:
        if self._encoder is not None:
            made, start = self._encoder.forward(), 0
            for table in self.derived.values():
                table[...] = made[:, start : start + table.shape[1]]
                start += table.shape[1]

    def after_gradients(self) -> None:
        if self._encoder is not None:
            self._encoder.backward(np.concatenate(list(self.derived_gradients.values()), axis=1))

    # --- passes ---------------------------------------------------------------------------------------------

    def run_losses(self, documents: Documents, look: Look | None = None) -> NDArray[np.float32]:
        with _gathered(look) as seen:
            return np.concatenate([self._passes.losses(part, seen) for part in self._parts(documents)])

    def run_gradients(
        self, documents: Documents, scale: float, weigh: Weigh | None = None, look: Look | None = None
    ) -> NDArray[np.float32]:
        if weigh is not None:  # which is to see all losses, and they may be those of several passes
            weights = np.zeros(len(documents), np.float32)
            weights[documents.targets != NOTHING] = weigh(self.run_losses(documents, look))
            documents, look = replace(documents, weights=weights), None
        with _gathered(look) as seen:
            return np.concatenate([self._passes.gradients(part, scale, look=seen) for part in self._parts(documents)])

    def run_hidden(self, documents: Documents) -> NDArray[np.float32]:
        parts = self._parts(documents)
        return np.concatenate([self._passes.hidden(part)[self._is_own(part)] for part in parts])

    def run_gradients_by_hidden(self, documents: Documents, gradient_of: Weigh) -> None:
        gradients, start = gradient_of(self.run_hidden(documents)), 0
        for part in self._parts(documents):
            own = self._is_own(part)
            rows = np.zeros((len(part), gradients.shape[1]), np.float32)
            rows[own] = gradients[start : start + np.count_nonzero(own)]
            start += np.count_nonzero(own)
            self._passes.gradients_of_hidden(part, partial(_given, rows))

    def _is_own(self, part: Documents) -> NDArray[np.bool_]:
        """Which tokens are those of the documents."""
        return part.positions >= self.config.virtual_tokens

    def _parts(self, documents: Documents) -> list[Documents]:
        """The documents with their virtual tokens, in passes that hold them, in order."""
        n, room = self.config.virtual_tokens, self._passes.n_batch
        parts: list[list[Documents]] = [[]]
        left = room
        for document in documents.apart():
            length = len(document) + n
            if length > left:
                parts.append([])
                left = room
            parts[-1].append(document)
            left -= length
        return [with_virtual(Documents.joined(part), n) for part in parts if part]


def _given(rows: NDArray[np.float32], hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """The gradient by hidden states, where it is known already."""
    return rows


@contextmanager
def _gathered(look: Look | None) -> Iterator[Look | None]:
    """What several passes show, shown as that of one."""
    seen: list[NDArray[np.float32]] = []
    yield None if look is None else seen.append
    if look is not None:
        look(np.concatenate(seen))


def with_virtual(documents: Documents, n: int) -> Documents:
    """The same with n tokens before each document, from which nothing is learnt."""
    at = np.repeat(documents.starts, n)
    return Documents(
        np.insert(documents.ids, at, 0),
        documents.lengths + n,
        np.insert(documents.targets, at, NOTHING),
        np.insert(documents.weights, at, 0),
    )
