"""How good a model is: how well it foresees a text, and how far it is from another that it was made from."""

from pathlib import Path

from edgellm.evaluate.distance import Distance, Divergence, divergence
from edgellm.evaluate.likelihood import Perplexity, perplexity
from edgellm.evaluate.sensitivity import Sensitivity

__all__ = ["ORDINARY_TEXT", "Distance", "Divergence", "Perplexity", "Sensitivity", "divergence", "perplexity"]

# Prose, code, dialogue and figures, a page of it: enough to compare a model with what it was made from.
ORDINARY_TEXT = Path(__file__).with_name("ordinary.txt")
