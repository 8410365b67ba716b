"""The records of sampling's kernels, which sampling calls itself.

Most are about a row of logits in groups of MAXIMA_GROUP, the last of which may be smaller. A chunk is GROUPS_TOGETHER
of them; kernels that look for single tokens have one chunk.
"""

from __future__ import annotations

from edgellm.kernels.records import MAXIMA_GROUP
from edgellm.kernels.schema import Schema

LARGEST = (2 - 2.0**-23) * 2.0**127  # of float32
GROUP_BITS = MAXIMA_GROUP.bit_length() - 1
GROUPS_TOGETHER = 128
_GROUPS: dict[str, str] = {
    "x": "ptr",  # float32 [n]
    "n": "i64",
    "words": "ptr",  # uint64 [n_groups]: a bit for each token that may come; those beyond the last token mean nothing
    "maxima": "ptr",  # float32 [n_groups]: the largest of each group, of tokens that may come
    "rest": "ptr",  # float32 [MAXIMA_GROUP], where the last group is filled up
}
GROUP_LARGEST = Schema(
    "group_largest",
    **_GROUPS,  # the maxima are filled in
    known="ptr",  # float32 [n_groups]: the largest of all tokens in each; 0 where they are not known
)
# What is found of all logits comes first in the record of a search, which the kernels of a search share.
_OF_ALL: dict[str, str] = {
    "scale": "f64",  # one over the temperature: e = (x - largest) * scale
    "sums": "ptr",  # float32 [n_groups]: sums of exp(e), 0 where e is below -87.3
    # float64 [n_chunks, 3]: the chunks' sums of exp(e) and of e * exp(e), and how many tokens may come
    "parts": "ptr",
    "with_products": "i64",  # 0: only the sums of exp(e) are wanted, the others are 0
}
GROUP_WEIGHTS = Schema("group_weights", **_GROUPS, **_OF_ALL)
# Here, parts are the number of tokens that may come, and the sums of x - largest and of its square.
GROUP_SPREAD = Schema("group_spread", **_GROUPS, **_OF_ALL)

# What leaves tokens out: the k most likely stay; the most likely whose probabilities reach a share; those at least so
# likely beside the likeliest as e to the power of a value below 0; those whose surprise is nearest to its mean, until
# they reach a share; those at least so probable; those so many standard deviations below the largest logit.
MOST_LIKELY, REACHING, WITHIN, TYPICAL, PROBABLE, SIGMAS = 1, 2, 3, 4, 5, 6
# What gives other probabilities, after which there is the draw alone: a temperature by entropy; an aim.
EVENNESS, AIMED = 7, 8
# A token of the probability p has the logit peak - sharpness * d**2 / (1 + d) then, where d = |p - value| / width.
AIM_PEAK, AIM_SHARPNESS, AIM_WIDTH = 5.0, 10.0, 0.3
FILTER = Schema(
    "filter",
    kind="i64",
    value="f64",
    scale="f64",  # of the exponents that probabilities have
    low="f64",  # temperatures, of EVENNESS
    high="f64",
)
_SEARCH: dict[str, str] = {
    "filters": "ptr",  # a FILTER each, one after the other
    "n_filters": "i64",
    "number": "f64",  # a token is drawn with a number from 0 to below 1; none is with one below 0
    "draw_scale": "f64",  # of the exponents then
    "every": "ptr",  # uint64: as many words of all bits as the maxima have groups
    "tokens": "ptr",  # int64 [n], and
    "logits": "ptr",  # float32 [n]: the first of them are filled in, with those that stay
    "weights": "ptr",  # float32 [n], for the sums, and
    "ranks": "ptr",  # float32 [n], for what tokens are chosen by
    # int64 [3]: how many stay, below 0 if logits are too large for it; of the one that is drawn, place among them and
    # token
    "found": "ptr",
    "share": "ptr",  # float64 [1]: its probability among them, before AIMED
}
GROUP_FIND = Schema("group_find", **_GROUPS, **_OF_ALL, **_SEARCH)  # there is a filter at least
GROUP_DRAW = Schema("group_draw", **_GROUPS, **_OF_ALL, **_SEARCH)  # of all
# The scale becomes that of the draw, with the temperature of the first filter.
GROUP_COOL = Schema("group_cool", **_GROUPS, **_OF_ALL, **_SEARCH)

# Logits of some tokens are divided by a temperature; positive ones are then divided by `repeat`, others multiplied; all
# lose something.
GROUP_CHANGE = Schema(
    "group_change",
    **_GROUPS,  # x and the maxima are written
    temperature="f64",  # by which what comes out is multiplied
    repeat="f64",
    n_tokens="i64",
    tokens="ptr",  # int64 [n_tokens]; afterwards those from 0 to n - 1, each once, as they first came
    # int32 [n], zeros before and after: the numbers are how often each token was there; 0: all tokens are different
    counts="ptr",
    numbers="ptr",  # float64 [n_tokens], of each token; afterwards of those that are left
    base="f64",  # what a token loses is base + factor * number; infinity makes it minus infinity, which stays so
    factor="f64",
    before="ptr",  # float32 [n_tokens], is filled in: what they had, and
    maxima_before="ptr",  # float32 [n_tokens]: the largest of their groups then
    found="ptr",  # int64 [1]: how many are left
)
REPEATED = Schema(
    "repeated",
    n="i64",
    ids="ptr",  # int64 [n]: a text
    limit="i64",
    allowed="i64",
    tokens="ptr",  # int64 [n]: those that came after what the text ends with, `allowed` tokens of it or more, each once
    found="ptr",  # int64 [1]: how many these are
    lengths="ptr",  # float64 [n]: how many tokens of the end came before each at most, up to `limit`
)
