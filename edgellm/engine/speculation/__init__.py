"""Speculation: what probably comes next is guessed cheaply, and the model checks several guesses in one pass.

A pass over the weights takes little longer for a few tokens than for one. So guesses that turn out right are tokens
for free; after the first that is wrong, the rest is thrown away. Whatever is guessed, an answer stays the same: each
token is chosen as ever, from the model's own logits and with the sampler's own random numbers, and a guess only stands
if it is the token that was chosen. (For guesses that are certain of themselves, this is the rejection sampling of
Leviathan et al. (2022) and Chen et al. (2023): a token x is kept with its probability p(x), and otherwise drawn from
the others in proportion to theirs.)
"""

from edgellm.engine.speculation.drafter import Drafter, Guess
from edgellm.engine.speculation.speculator import NO_SPECULATION, Speculator

__all__ = ["NO_SPECULATION", "Drafter", "Guess", "Speculator"]
