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
_WEIGHTS: dict[str, str] = {
    "largest": "f64",
    "scale": "f64",
    "sums": "ptr",  # float32 [n_groups]: for e = (x - largest) * scale, sums of exp(e), 0 where e is below -87.3
    # float64 [n_chunks, 3]: the chunks' sums of exp(e) and of e * exp(e), and how many tokens may come
    "parts": "ptr",
}
GROUP_WEIGHTS = Schema("group_weights", **_GROUPS, **_WEIGHTS)
GROUP_DRAW = Schema(
    "group_draw",
    **_GROUPS,
    **_WEIGHTS,  # filled in
    number="f64",  # from 0 to below 1
    token="ptr",  # int64 [1]: the one that it falls on, where exp(e) are side by side
    share="ptr",  # float64 [1]: its probability
)
GROUP_SPREAD = Schema(
    "group_spread",
    **_GROUPS,
    middle="f64",
    out="ptr",  # float64 [n_chunks, 3]: the number of tokens that may come, the sums of x - middle and of its square
)

# What leaves tokens out: the k most likely stay; the most likely whose probabilities reach a share; logits from the
# largest less a distance on; those whose surprise is nearest to its mean, until they reach a share.
MOST_LIKELY, REACHING, WITHIN, TYPICAL = 1, 2, 3, 4
FILTER = Schema("filter", kind="i64", value="f64", scale="f64")  # of the exponents that probabilities have
GROUP_FIND = Schema(
    "group_find",
    **_GROUPS,
    filters="ptr",  # a FILTER each, one after the other
    n_filters="i64",  # at least 1
    # If the first one is REACHING or TYPICAL, what GROUP_WEIGHTS has found by its scale:
    sums="ptr",  # float32 [n_groups]
    total="f64",
    products="f64",
    number="f64",  # a token is drawn with a number from 0 to below 1; none is with one below 0
    scale="f64",  # of the exponents then
    every="ptr",  # uint64: as many words of all bits as the maxima have groups
    tokens="ptr",  # int64 [n], and
    logits="ptr",  # float32 [n]: the first of them are filled in, with those that stay
    weights="ptr",  # float32 [n], for the sums, and
    ranks="ptr",  # float32 [n], for what tokens are chosen by
    found="ptr",  # int64 [3]: how many stay; of the one that is drawn, place among them and token
    share="ptr",  # float64 [1]: its probability among them
)

# Logits are divided by a temperature; positive ones are then divided by `repeat`, others multiplied; all lose
# something.
GROUP_CHANGE = Schema(
    "group_change",
    **_GROUPS,  # x and the maxima are written
    temperature="f64",  # by which what comes out is multiplied
    repeat="f64",
    n_changed="i64",
    tokens="ptr",  # int64 [n_changed], all different
    numbers="ptr",  # float64 [n_changed]
    base="f64",  # what a token loses is base + factor * number; infinity makes it minus infinity, which stays so
    factor="f64",
    before="ptr",  # float32 [n_changed], is filled in: what they had
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
COUNT_TOKENS = Schema(
    "count_tokens",
    n="i64",
    n_tokens="i64",
    tokens="ptr",  # int64 [n_tokens]; afterwards those from 0 to n - 1, each once, as they first came
    found="ptr",  # int64 [1]: how many these are
    times="ptr",  # float64 [n_tokens]: how often each was there
    counts="ptr",  # int32 [n], zeros before and after
)
