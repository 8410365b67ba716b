"""The streaming decoder never shows half a character."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders

from edgellm.text import StreamDecoder, Tokenizer, load_tokenizer

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


@cache
def of_sentencepiece() -> tuple[Tokenizer, Any]:
    metadata, original = oracles.train_sentencepiece()
    return load_tokenizer(metadata), original


BYTES = st.sampled_from([0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xC0, 0xC3, 0xFF, 0x0A, 0x41])


@given(st.lists(st.one_of(BYTES, st.sampled_from(["\u2581the", "e", "\u2581"])), max_size=12))
@example([*list(b"\xe4\xb8"), "e"])
@example([*list("中".encode()), 255, 10, 240, 159, 152])
def test_broken_bytes_are_shown_as_by_sentencepiece(parts: list[int | str]) -> None:
    """One U+FFFD for each, in whole texts and in streams; whole characters beside them stay."""
    ours, original = of_sentencepiece()
    pieces = [f"<0x{part:02X}>" if isinstance(part, int) else part for part in parts]
    ids = [original.piece_to_id(piece) for piece in pieces]
    text = ours.decode([ours.bos_id, *ids], skip_special=True)
    assert text == original.decode(ids)
    stream = ours.stream(after=ours.bos_id)
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    runs = [list(run) for run in bytes(part if isinstance(part, int) else 32 for part in parts).split(b" ")]
    if not any(
        bytes(run).decode(errors="ignore") and bytes(run).decode(errors="replace").count("\ufffd") for run in runs
    ):
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        assert text == decoders.Sequence(steps).decode(pieces)
