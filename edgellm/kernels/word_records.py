"""The records of kernels that make tokens of texts (see `ops/cut_words.py` and `ops/merge_words.py`).

Texts are UTF-8. Words of a text are written down by their ends: the first begins at a given place, each other one where
the one before ends.
"""

from __future__ import annotations

from edgellm.kernels.schema import Schema

# Steps of an automaton (see `edgellm.text.compiled.automaton`).
AT_END_CLASS = 1  # of the end of a text, where characters have classes
DEAD_STATE, START_STATE = 0, 1
NOT_MADE = -1  # a step that the table lacks

IN_LINE = 4  # places of a table that are looked at together: those of a line of the CPU's caches
MOST_PROBES = 256  # places of a table that are looked at for a string
MOST_ALIKE = 16  # times that long strings share a key while a table is made; next to never, unless they are made so
AT_ONCE = 64  # strings whose places in a table are asked for before they are needed
LONGEST_WORD = 256  # bytes of a word that is merged here: pairs are looked through one by one
UNRANKED = (1 << 31) - 1  # in place of a rank: the token is not made by merging
WHOLE, PASSING = 1, 2  # marks of a token: a word is taken for it, whatever merging makes of it; not left in a word

CUT_WORDS = Schema(
    "cut_words",
    text="ptr",
    pieces="ptr",  # int64 [n_pieces]: where each piece of the text ends, by which no match reaches
    n_pieces="i64",
    classes="ptr",  # uint8 [0x110000]: of each character
    steps="ptr",  # int32 [n_states, n_classes]: next state << 1 | whether a match ends before the character
    n_classes="i64",
    ends="ptr",  # out: int64 [room], of words
    room="i64",  # at least 2
    # int64 [6], in and out. In: the piece to go on with, where in it, and where what no match has taken begins. Out:
    # the same, and the number of words; then state and class of a step that was lacking, or twice -1.
    progress="ptr",
)

# A list of strings, string i being `bytes[starts[i] + lead : starts[i + 1]]`, and a table by which they are found.
STRINGS = Schema(
    "strings",
    bytes="ptr",
    starts="ptr",  # int64 [n + 1]
    lead="i64",
    n="i64",
    are_pairs="i64",  # 1: strings of two halves with a space between; others are left out
    ranks="ptr",  # int32 [n]: the strings with the lowest are joined first, UNRANKED never; 0: in their order
    # int64 [n_places, 2]: a key that stands for a string (see `key_of`), then its number in the lower half and its rank
    # in the upper; or zeros. A string is in the line of IN_LINE places that its key names or one of the next, which are
    # filled from their beginnings; of equal ones, the last.
    table="ptr",
    n_places="i64",  # a power of two, IN_LINE or more
)

INDEX_STRINGS = Schema(
    "index_strings",
    strings=STRINGS,  # with zeros for a table, which is filled
    scratch="ptr",  # int64 [3 * AT_ONCE]
    status="ptr",  # out: int64 [2]: 0, or 1 when there is no table: too many keys are alike; and spaces in all pairs
)

MERGE_WORDS = Schema(
    "merge_words",
    text="ptr",
    begin="i64",
    ends="ptr",  # int64 [n_words]
    n_words="i64",
    # int32 [256]: of a byte, UTF-8 of the character for it, the first byte lowest, and n_bytes << 16; or 0: the symbols
    # that merging begins with are the characters of a word.
    spelling="ptr",
    tokens=STRINGS,
    merges=STRINGS,  # pairs; or the tokens again: two symbols are joined that together are one
    marks="ptr",  # uint8 [n_tokens], WHOLE and PASSING; or 0 when no token has one
    byte_ids="ptr",  # int32 [256]: the tokens that spell what is no token, byte by byte, or -1; or 0
    scratch="ptr",  # merge_scratch_bytes()
    # int64 [n_recent, 2], zeros at first: keys of words that were met, each at the place of its key or one of the next,
    # until another one takes it; then the word's number in the lower half, and in the upper where its ids begin.
    recent="ptr",
    n_recent="i64",  # a power of two
    ids="ptr",  # out: int32, at most one for each byte
    counts="ptr",  # out: int32 [n_words]: ids of each word, or -1: too long, or left with what is no token to be left
)


def merge_scratch_bytes() -> int:
    """Of a word: its spelling, and of every symbol where it begins and the rank of its pair with the next."""
    return 2 * LONGEST_WORD + 2 * 8 * (LONGEST_WORD + 1)
