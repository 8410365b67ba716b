"""How good a model is: how well it foresees a text, and how far it is from another that it was made from."""

from edgellm.evaluate.distance import Distance, Divergence, divergence
from edgellm.evaluate.likelihood import Perplexity, perplexity

__all__ = ["Distance", "Divergence", "Perplexity", "divergence", "perplexity"]
