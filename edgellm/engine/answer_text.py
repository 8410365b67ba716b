"""The text of an answer while its tokens are chosen: what may be shown, what ends it, and what must not be in it.

    chosen tokens ──► held back ──► shown
                      as long as they may be the beginning of a stop string or of a banned one

Text that may begin a stop string waits to the character. Where it may begin a banned string, whole tokens wait: if the
string comes, they are taken back from the one on that it began in, and another is chosen in that one's place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from edgellm.engine.sampling import TokenLogprobs
from edgellm.text import StreamDecoder
from edgellm.text.strings import StringFinder

# So often others are tried where a banned string began; then it is cut short at its last token, which always ends.
MOST_TRIES = 16


class Shown(NamedTuple):
    """A token of an answer, and the text that can be shown now that it is there: often its own, sometimes none."""

    token_id: int
    text: str
    logprobs: TokenLogprobs | None


class TakenBack(NamedTuple):
    """How many tokens are taken back, the one that was just chosen among them; and the sampler's state before them."""

    n_tokens: int
    sampler: Any


class _Place(NamedTuple):
    """Where a text is after some tokens: all that another token changes."""

    decoder: Any
    n_characters: int = 0
    stop_node: int = 0
    ban_node: int = 0


class _Held(NamedTuple):
    """A token that is not shown yet. before: the place, and the sampler's state, that it was chosen in."""

    token_id: int
    logprobs: TokenLogprobs | None
    before: _Place
    sampler: Any
    end: int  # characters of the answer, with its own


class AnswerText:
    """The text of one answer.

    stop_string:     the one that has ended it.
    takes_back:      tokens may be taken back.
    """

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = (), banned: Sequence[str] = ()) -> None:
        self.stop_string: str | None = None
        self.takes_back = bool(banned)
        self._decoder = decoder
        self._stop = StringFinder(stop)
        self._ban = StringFinder(banned)
        self._is_watched = bool(stop or banned)
        self._place = _Place(decoder.state)
        self._held: list[_Held] = []
        self._waiting = ""  # text that is not shown yet: the end of what there is
        self._n_tokens = 0
        # By how many tokens of the answer come before: tokens, and whether a banned string began with them and went on.
        self._forbidden: dict[int, dict[int, bool]] = {}
        self._n_tries: dict[int, int] = {}

    @property
    def forbidden(self) -> Collection[int]:
        """The tokens that must not come next."""
        return self._forbidden.get(self._n_tokens, {}).keys()

    def allow_beginnings(self) -> bool:
        """Where no other token may come: let those come that banned strings began with; False when there are none.

        From now on, what begins here is cut short at its last token.
        """
        here = self._forbidden.get(self._n_tokens, {})
        if not any(here.values()):
            return False
        whole = [token_id for token_id, went_on in here.items() if not went_on]
        self._forbidden[self._n_tokens] = dict.fromkeys(whole, False)
        self._n_tries[self._n_tokens] = MOST_TRIES
        return True

    def push(self, token_id: int, logprobs: TokenLogprobs | None = None, sampler: Any = None) -> TakenBack | None:
        """Take a token that was chosen; sampler: its state before that.

        If a banned string would be there now, tokens are taken back, and `forbidden` is no longer what it was. If
        `stop_string` is there now, the answer ends.
        """
        if not self._is_watched:
            self._held.append(_Held(token_id, logprobs, self._place, None, 0))
            self._waiting += self._decoder.push(token_id)
            return None
        before = self._place
        self._decoder.state = before.decoder
        text = self._decoder.push(token_id)
        stop_node, ban_node, n = before.stop_node, before.ban_node, before.n_characters
        for character in text:
            n += 1
            stop_node, ban_node = self._stop.next(stop_node, character), self._ban.next(ban_node, character)
            if (found := self._stop.found(stop_node)) is not None:
                self.stop_string = found
                text = text[: n - before.n_characters]
                break
            if (found := self._ban.found(ban_node)) is not None:
                return self._take_back(token_id, n - len(found), sampler)
        self._place = _Place(self._decoder.state, n, stop_node, ban_node)
        self._held.append(_Held(token_id, logprobs, before, sampler, n))
        self._waiting += text
        self._n_tokens += 1
        return None

    def shown(self) -> Iterator[Shown]:
        """The tokens that need not wait any longer, with the text that need not."""
        if not self._is_watched:
            for held in self._held:
                text, self._waiting = self._waiting, ""
                yield Shown(held.token_id, text, held.logprobs)
            self._held.clear()
            return
        n = self._place.n_characters
        first_waiting = n - self._ban.depth(self._place.ban_node)
        until = n - self._stop.depth(self._place.stop_node)
        while self._held and self._held[0].end <= first_waiting and not self._may_be_cut(self._held[0], until):
            yield self._show(until)
        n_shown = self._n_tokens - len(self._held)
        if self._forbidden and min(self._forbidden) < n_shown:
            self._forbidden = {place: ids for place, ids in self._forbidden.items() if place >= n_shown}

    def _may_be_cut(self, held: _Held, until: int) -> bool:
        """Whether nothing of a token may be shown in the end, so that nobody is to hear of its log-probability yet."""
        return held.logprobs is not None and held.before.n_characters >= until and held.end > until

    def finish(self) -> tuple[list[Shown], str]:
        """All tokens that still wait, and what is left of the text: nothing more comes."""
        if not self._is_watched:
            return list(self.shown()), self._decoder.flush()
        until = self._place.n_characters - len(self.stop_string or "")
        shown = [self._show(until) for _ in list(self._held)]
        if self.stop_string is not None:
            return shown, self._waiting[: max(0, until - (self._place.n_characters - len(self._waiting)))]
        rest, node = self._decoder.flush(), self._place.ban_node
        for character in rest:
            node = self._ban.next(node, character)
            if self._ban.found(node) is not None:
                rest = ""  # a part of a character is no text
                break
        return shown, self._waiting + rest

    def _show(self, until: int) -> Shown:
        """The first token that waits, with its text up to so many characters; without its log-probability when a stop
        string left none of it.
        """
        held = self._held.pop(0)
        logprobs = None if self.stop_string is not None and self._may_be_cut(held, until) else held.logprobs
        n_new = max(0, min(held.end, until) - (self._place.n_characters - len(self._waiting)))
        text, self._waiting = self._waiting[:n_new], self._waiting[n_new:]
        return Shown(held.token_id, text, logprobs)

    def _take_back(self, token_id: int, start: int, sampler: Any) -> TakenBack:
        """start: where in the answer a banned string begins that the token has completed."""
        index = next((i for i, held in enumerate(self._held) if held.end > start), len(self._held))
        place = self._n_tokens - len(self._held) + index
        self._n_tries[place] = self._n_tries.get(place, 0) + 1
        if index == len(self._held) or self._n_tries[place] > MOST_TRIES:
            self._forbidden.setdefault(self._n_tokens, {})[token_id] = False
            return TakenBack(1, sampler)
        first = self._held[index]
        n_taken = len(self._held) - index + 1
        # What was tried after the tokens that are taken back was tried after another text.
        self._forbidden = {before: ids for before, ids in self._forbidden.items() if before <= place}
        self._forbidden.setdefault(place, {}).setdefault(first.token_id, True)
        self._waiting = self._waiting[: len(self._waiting) - (self._place.n_characters - first.before.n_characters)]
        self._place, self._n_tokens = first.before, place
        del self._held[index:]
        return TakenBack(n_taken, first.sampler)
