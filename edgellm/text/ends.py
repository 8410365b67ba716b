"""The tokens that end an answer, by the names that model families give them."""

from __future__ import annotations

from collections.abc import Container

# Names that are nothing else, whatever type a file gives the token.
UNMISTAKABLE = (
    b"<|im_end|>", b"<|eot_id|>", b"<|eom_id|>", b"<|eot|>", b"<|eom|>", b"<|end|>", b"<|end_of_turn|>",
    b"<end_of_turn>", b"<turn|>", b"<|tool_response>", b"<|return|>", b"<|call|>", b"<|calls|>", b"<|flush|>",
    b"<|endoftext|>", b"<|end_of_text|>", b"<|END_OF_TURN_TOKEN|>", b"<end_of_utterance>",
    "<\uff5cend▁of▁sentence\uff5c>".encode(),
)  # fmt: skip

# Names that can be words of a text as well, where a file does not set the token apart.
AMBIGUOUS = (
    b"</s>", b"<eos>", b"[EOS]", b"<EOT>", b"< EOT >", b"_<EOT>", "▁<EOT>".encode(), b"[EOT]", b"[e~["
)  # fmt: skip
_WORDS = (b"EOT",)  # which mostly are

# Where all the first are in a vocabulary, the last ends only a part of an answer: OpenAI's harmony format and the one
# of Solar have it between a thought and a message, and in Gemma 4 it is nothing.
_PARTS = (
    ((b"<|return|>", b"<|call|>"), b"<|end|>"),
    ((b"<|calls|>", b"<|flush|>"), b"<|end|>"),
    ((b"<|tool_response>",), b"</s>"),
)


def end_names(vocabulary: Container[bytes]) -> list[bytes]:
    """The names that end an answer with a vocabulary, whether it has all of them or not."""
    parts = {name for witnesses, name in _PARTS if all(witness in vocabulary for witness in witnesses)}
    return [name for name in UNMISTAKABLE + AMBIGUOUS + _WORDS if name not in parts]
