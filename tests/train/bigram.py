"""A small learner with exact gradients, and examples for it: what the loop, checkpoints and commands are tested with.

The next token depends on the present one alone: logits = table[id] + bias. Part of the table is left out at random in
each step, as dropout does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.train.documents import NOTHING, Documents

N_VOCAB = 12


class Bigram:
    def __init__(self, n_vocab: int = N_VOCAB, dropout: float = 0.25, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.parameters = {
            "table": 0.1 * rng.standard_normal((n_vocab, n_vocab), np.float32),
            "bias": np.zeros(n_vocab, np.float32),
        }
        self.gradients = {name: np.full_like(array, 99) for name, array in self.parameters.items()}
        self.n_batch = 64
        self.dropout = dropout
        self.seed = seed
        self.places: list[tuple[int, int]] = []

    def begin_pass(self, step: int, index: int) -> None:
        self.places.append((step, index))

    def loss_and_gradients(self, documents: Documents, scale: float) -> float:
        n_vocab = len(self.parameters["bias"])
        keep = np.random.default_rng((self.seed, *self.places[-1])).random((n_vocab, n_vocab)) >= self.dropout
        keep = keep / (1 - self.dropout)
        ids, targets, weights, nll, probabilities = self._forward(documents, keep)
        slope = probabilities
        slope[np.arange(len(ids)), targets] -= 1
        slope *= weights[:, None] * scale
        gradient = np.zeros((n_vocab, n_vocab))
        np.add.at(gradient, ids, slope)
        self.gradients["table"] += (gradient * keep).astype(np.float32)
        self.gradients["bias"] += slope.sum(axis=0).astype(np.float32)
        return float(nll @ weights)

    def loss(self, documents: Documents) -> tuple[float, float]:
        _, _, weights, nll, _ = self._forward(documents, 1.0)
        return float(nll @ weights), float(weights.sum())

    def negative_log_likelihoods(self, documents: Documents) -> NDArray[np.float32]:
        return self._forward(documents, 1.0)[3].astype(np.float32)

    def _forward(self, documents: Documents, keep: NDArray[np.float64] | float) -> tuple[NDArray, ...]:
        learnt = documents.targets != NOTHING
        ids, targets = documents.ids[learnt], documents.targets[learnt]
        weights = documents.weights[learnt].astype(np.float64)
        logits = (self.parameters["table"].astype(np.float64) * keep)[ids] + self.parameters["bias"]
        logits -= logits.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        nll = (log_sums[:, 0] - logits[np.arange(len(ids)), targets]) if len(ids) else np.zeros(0)
        return ids, targets, weights, nll, np.exp(logits - log_sums)


def document(ids: Sequence[int]) -> Documents:
    return Documents.of(ids, [True] * len(ids))


class Counting:
    """Texts that count up, with an odd token now and then: `n` to learn from and a few to validate with."""

    def __init__(self, n: int = 24, batch_size: int = 4, n_validation: int = 4, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        texts = [self._text(rng) for _ in range(n + n_validation)]
        self.texts = texts[:n]
        self.validation = [document(text) for text in texts[n:]]
        self.batch_size = batch_size
        self.n_batches = -(-n // batch_size)
        self.asked: list[int] = []

    def epoch(self, number: int) -> Iterator[list[Documents]]:
        self.asked.append(number)
        order = np.random.default_rng((7, number)).permutation(len(self.texts))
        for begin in range(0, len(order), self.batch_size):
            part = [self.texts[i] for i in order[begin : begin + self.batch_size]]
            yield [Documents.joined(map(document, part[:2]))] + [document(text) for text in part[2:]]

    @staticmethod
    def _text(rng: np.random.Generator) -> list[int]:
        ids = (np.arange(rng.integers(3, 15)) + rng.integers(N_VOCAB)) % N_VOCAB
        odd = rng.random(len(ids)) < 0.1
        return list(np.where(odd, rng.integers(N_VOCAB, size=len(ids)), ids))
