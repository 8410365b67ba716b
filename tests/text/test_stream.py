"""The streaming decoder never shows half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.text import StreamDecoder, load_tokenizer

from . import oracles


@given(st.lists(st.binary(max_size=4)))
def test_pieces_join_to_what_decoding_at_once_gives(tokens):
    stream = StreamDecoder(tokens.__getitem__)
    pieces = [stream.push(i) for i in range(len(tokens))]
    assert "".join(pieces) + stream.flush() == b"".join(tokens).decode("utf-8", "replace")


@given(st.text(), st.data())
def test_whole_characters_only(text, data):
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))))
    tokens = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    stream = StreamDecoder(tokens.__getitem__)
    shown = ""
    for i in range(len(tokens)):
        shown += stream.push(i)
        assert text.startswith(shown)
    assert stream.flush() == ""
    assert shown == text


def test_a_character_cut_off_by_the_end_is_shown_as_broken():
    stream = StreamDecoder([b"ok ", b"\xf0\x9f", b"\xa6"].__getitem__)
    assert [stream.push(0), stream.push(1), stream.push(2)] == ["ok ", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_the_space_before_a_continued_word_stays_and_control_tokens_are_silent():
    metadata, _ = oracles.train_sentencepiece()
    tokenizer = load_tokenizer(metadata)
    ids = tokenizer.encode("the", add_special=True)
    silent, open_ = tokenizer.stream(), tokenizer.stream(skip_special=False)
    assert "".join(map(silent.push, ids)) == " the"
    assert "".join(map(open_.push, ids)) == "<s> the"
    assert tokenizer.decode(ids, skip_special=True) == "the"
