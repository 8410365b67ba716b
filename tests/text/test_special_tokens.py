"""Special tokens are found leftmost first, and the longest of those that start at one place."""

from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from edgellm.text.special_tokens import SpecialTokens

tokens = st.sets(st.text("ab<|>", min_size=1, max_size=5), max_size=8)


@given(tokens, st.text("ab<|> ", max_size=40))
def test_like_a_regular_expression_of_all_of_them(tokens, text):
    ids = {token: i for i, token in enumerate(sorted(tokens))}
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    pieces = [piece for piece in re.split(f"({pattern})", text) if piece] if tokens else [text] if text else []
    assert list(SpecialTokens(ids).split(text)) == [ids.get(piece, piece) for piece in pieces]


def test_white_space_behind_some_tokens_goes_with_them():
    special = SpecialTokens({"<a>": 1, "<b>": 2}, strip_right={1})
    assert list(special.split("<a> \n x <b> y<a> ")) == [1, "x ", 2, " y", 1]


def test_thousands_of_tokens_take_no_time():
    special = SpecialTokens({f"<unused{i}>": i for i in range(6000)})
    start = time.process_time()
    assert list(special.split("<unused17>" + "<unused " * 20_000)) == [17, "<unused " * 20_000]
    assert time.process_time() - start < 2
