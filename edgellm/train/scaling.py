"""Scaling laws: what loss a model of a size reaches with so many tokens, and how best to spend arithmetic on both.

    Hoffmann et al. (2022), "Training compute-optimal large language models", approach 3:
        L(N, D) = E + A / N^alpha + B / D^beta

    Kaplan et al. (2020), "Scaling laws for neural language models", equation 1.5 and table 2:
        L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D

N are weights, D tokens, L the loss in nats per token. Training takes C = 6 N D floating point operations: a product and
a sum for each weight and token forwards, and twice as many backwards.

Where they hold: Kaplan et al. trained models of up to 1.5 billion weights, with a vocabulary of 50,000 tokens; Hoffmann
et al. of 70 million to 16 billion, with 32,000; both on large mixed texts. Smaller models, vocabularies and texts lie
outside of that: trust differences and proportions more than the loss itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOPS_PER_WEIGHT = 6  # and token
TOKENS_PER_WEIGHT = 20.0  # what Hoffmann's three approaches come to for large models
GOOD_EPOCHS = 4  # repetitions up to here are nearly as good as new text (Muennighoff et al., 2023)
REPEAT_WORTH = 15.39  # R*_D there: how fast repetitions lose their worth
PETAFLOP_DAY = 1e15 * 86400


@dataclass(frozen=True)
class Spent:
    """Weights and tokens of a training run."""

    n_parameters: float
    n_tokens: float

    @property
    def flops(self) -> float:
        return FLOPS_PER_WEIGHT * self.n_parameters * self.n_tokens


class Hoffmann:
    """Hoffmann et al. (2022), approach 3."""

    name = "Hoffmann et al. 2022"
    formula = "L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28"
    E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
    G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))

    def loss(self, spent: Spent) -> float:
        return self.E + self.A / spent.n_parameters**self.ALPHA + self.B / spent.n_tokens**self.BETA

    def best(self, flops: float) -> Spent:
        """Where the loss is lowest of all with 6 N D = flops (their equation 4)."""
        base = flops / FLOPS_PER_WEIGHT
        share = self.BETA / (self.ALPHA + self.BETA)
        return Spent(self.G * base**share, base ** (1 - share) / self.G)

    def tokens_for(self, n_parameters: float) -> float:
        """The tokens for which this size is the best: best() turned round."""
        return (n_parameters / self.G) ** (self.ALPHA / self.BETA) / self.G

    def parameters_for(self, n_tokens: float) -> float:
        """The size for which so many tokens are the best."""
        return self.G * (n_tokens * self.G) ** (self.BETA / self.ALPHA)


class Kaplan:
    """Kaplan et al. (2020). Its N leaves embeddings out."""

    name = "Kaplan et al. 2020"
    formula = "L = ((6.4e13 / N)^(0.076 / 0.103) + 1.8e13 / D)^0.103"
    N_C, D_C, ALPHA_N, ALPHA_D = 6.4e13, 1.8e13, 0.076, 0.103
    BEST_N, SHARE_N = 1.3e9, 0.73  # at one petaflop-day: their table 6, N = N_e C^0.73

    def loss(self, spent: Spent) -> float:
        of_size = (self.N_C / spent.n_parameters) ** (self.ALPHA_N / self.ALPHA_D)
        return float((of_size + self.D_C / spent.n_tokens) ** self.ALPHA_D)

    def best(self, flops: float) -> Spent:
        """Their size for this much arithmetic, and the tokens that are left to it by 6 N D."""
        n_parameters = self.BEST_N * (flops / PETAFLOP_DAY) ** self.SHARE_N
        return Spent(n_parameters, flops / (FLOPS_PER_WEIGHT * n_parameters))


def worth_of(n_tokens: float, n_unique: float) -> float:
    """How many tokens of new text are as good as n_tokens of a text of n_unique, read again and again.

    Muennighoff et al. (2023), equation 5: D' = U + U R* (1 - exp(-R / R*)), R = D / U - 1 being the repetitions.
    """
    if n_tokens <= n_unique:
        return n_tokens
    repetitions = n_tokens / n_unique - 1
    return n_unique * (1 + REPEAT_WORTH * (1 - math.exp(-repetitions / REPEAT_WORTH)))


HOFFMANN, KAPLAN = Hoffmann(), Kaplan()
