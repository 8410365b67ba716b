"""Text from tokens as they arrive, never showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable

EACH = "edgellm.each"  # how bytes that are no characters are decoded: as U+FFFD each, also where some belong together


def _each(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH, _each)


class StreamDecoder:
    """Decodes token after token. A character may spread over several tokens; it is held back until complete.

    `push` and `flush` together yield what decoding all bytes at once would: bytes that can never become a
    character appear as U+FFFD, by `errors` ("replace", or EACH).

    state:  where the text is; whoever takes tokens back gives an earlier state back.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes | None], begins: bool = False, errors: str = "replace"
    ) -> None:
        """token_bytes: what a token shows; None for one that is silent. begins: a space in front is not the text's."""
        self._token_bytes = token_bytes
        self._begins = begins
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    @property
    def state(self) -> tuple[bool, tuple[bytes, int]]:
        return self._begins, self._decoder.getstate()

    @state.setter
    def state(self, state: tuple[bool, tuple[bytes, int]]) -> None:
        self._begins = state[0]
        self._decoder.setstate(state[1])

    def push(self, token_id: int) -> str:
        """The text that this token completes; often all of its own, sometimes nothing yet."""
        piece = self._token_bytes(token_id)
        if piece is None:
            return ""
        if self._begins:
            self._begins, piece = False, piece.removeprefix(b" ")
        if piece.isascii() and not self._decoder.getstate()[0]:  # as most are: nothing is left to wait for
            return piece.decode("ascii")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole, mostly nothing."""
        return self._decoder.decode(b"", final=True)
