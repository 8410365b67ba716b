"""Documents as text again, for people: what the model sees, and what it learns of that."""

from __future__ import annotations

from collections.abc import Iterator

from edgellm.text import Tokenizer
from edgellm.train.documents import NOTHING, Documents


def spelled(document: Documents, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """The text of one document in stretches, and whether each is learnt. Control tokens show their names.

    A character of which only some tokens are learnt counts as what its last token is.
    """
    decoder = tokenizer.stream(skip_special=False)
    learnt = [False, *(document.targets != NOTHING).tolist()]
    text, now = "", False
    for token_id, trained in zip(document.ids.tolist(), learnt, strict=False):
        if trained != now and text:
            yield text, now
            text = ""
        now = trained
        text += decoder.push(token_id)
    text += decoder.flush()
    if text:
        yield text, now
