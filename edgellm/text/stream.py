"""Text from tokens as they arrive, never showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Decodes token after token. A character may spread over several tokens; it is held back until complete.

    `push` and `flush` together yield what decoding all bytes at once would: bytes that can never become a
    character appear as U+FFFD.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; often all of its own, sometimes nothing yet."""
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole, mostly nothing."""
        return self._decoder.decode(b"", final=True)
