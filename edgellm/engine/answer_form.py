"""The parts of an answer: thoughts, what is said, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgellm.engine.piece import Kind, Piece
from edgellm.text.calls import Call, CallSyntax
from edgellm.text.calls.following import CallFollower, OpenCall
from edgellm.text.reasoning import Reasoning


@dataclass(frozen=True)
class AnswerForm:
    """What an answer may consist of.

    reasoning:   how thoughts are marked; None where there are none.
    is_open:     the prompt has begun a thought.
    is_over:     the prompt has ended one, or left it out, and the answer itself comes next.
    calls:       how calls are written; None where there are none.
    arguments:   the schemas of what each tool takes, by its name.
    one_call:    the answer is over with its first call.
    is_begun:    the prompt has begun the answer, which goes on in the middle of its text.
    is_sure:     a grammar sees to it that a call that begins becomes one, unless the answer is cut off.
    """

    reasoning: Reasoning | None = None
    is_open: bool = False
    is_over: bool = False
    calls: CallSyntax | None = None
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    one_call: bool = False
    is_begun: bool = False
    is_sure: bool = False

    @property
    def syntaxes(self) -> list[CallSyntax]:
        """How calls may be written: as the template does, or without the marks around."""
        return [syntax for syntax in (self.calls, self.calls.bare if self.calls else None) if syntax is not None]

    @property
    def marks(self) -> list[str]:
        """All texts that set the parts apart."""
        found: list[str] = []
        if self.reasoning is not None:
            r = self.reasoning
            found += [r.start, r.end, r.lead, r.answer_start]
        if self.calls is not None:
            c = self.calls
            found += [c.first, *c.middle, c.again or "", c.last]
            found += [text for text in vars(c.arguments).values() if isinstance(text, str)]
            for how in ("texts", "others"):
                if (written := getattr(c.arguments, how, None)) is not None:
                    found += [written.before, written.after]
        return [text for text in found if text]


class AnswerReader:
    """Takes the text of an answer piece by piece, and tells its parts apart.

    A mark is not shown, nor is a text that may be the beginning of one until it is known. Calls are kept to the end;
    what looks like calls and is none is shown as it is. A call that is cut off with its answer is not shown.

    Nor is what may be half of a mark when its answer is cut off. It may be the text's own too, as a "<" of a formula;
    but a text that was cut loses nothing by a character less, and whoever goes on with it gets that again, whereas half
    of a mark is taken for something that was said.

    calls:       of the whole answer, at its end. open_calls: those that have begun, where that can be told before.
    """

    def __init__(self, form: AnswerForm) -> None:
        self.calls: list[Call] = []
        self._form = form
        self._waiting = ""
        self._cut: str | None = None  # what came behind the text where it was cut off, as far as is known
        self._state = "thought" if form.is_open else "lead" if form.is_begun else "start"
        self._leads: list[str] = []  # texts that may come now, in this order, and are not shown
        if form.reasoning is not None and not form.is_open and not form.is_over:
            self._leads = [form.reasoning.answer_start]
        # White space in front of an answer; in the middle of one it is part of the text.
        self._trims = form.reasoning is not None and not form.is_begun
        self._follower: CallFollower | None = None
        if form.is_sure and form.calls is not None and CallFollower.follows(form.calls):
            self._follower = CallFollower(form.calls, form.arguments)

    @property
    def open_calls(self) -> list[OpenCall]:
        return self._follower.calls if self._follower is not None else []

    @property
    def is_over(self) -> bool:
        """What comes from here on is no part of the answer."""
        return self._state == "over"

    def push(self, text: str) -> Iterator[Piece]:
        """More text, and the pieces that are known now."""
        self._waiting += text
        while (piece := self._next(is_end=False)) is not None:
            if piece.text:
                yield piece

    def finish(self, is_cut: bool = False, behind: str = "") -> Iterator[Piece]:
        """What is left, when no more text comes; `calls` are there then.

        is_cut: more would have come. behind: what it would have begun with, such as a stop string.
        """
        self._cut = behind if is_cut else None
        while (piece := self._next(is_end=True)) is not None:
            if piece.text:
                yield piece
        if self._state == "calls":
            rest, found = self._waiting, None
            for syntax in self._form.syntaxes:
                found = found or syntax.read(rest, self._form.arguments)
            if found is not None:
                calls, rest = found
                self.calls = self._with_ids(calls)
            self._waiting = ""
            whole = rest + behind
            if is_cut and any(syntax.may_become_call(whole, self._form.arguments) for syntax in self._form.syntaxes):
                return
            if rest.strip():
                yield Piece("content", rest)

    def _next(self, is_end: bool) -> Piece | None:
        """The next piece, which may be empty; None when more text is needed."""
        return getattr(self, f"_{self._state}")(is_end)  # type: ignore[no-any-return]

    def _start(self, is_end: bool) -> Piece | None:
        reasoning = self._form.reasoning
        if reasoning is not None:
            text = self._waiting.lstrip()
            if text.startswith(reasoning.start):
                self._waiting, self._state = text[len(reasoning.start) :], "thought"
                return Piece("reasoning", "")
            if reasoning.start.startswith(text) and not is_end:
                return None
            if is_end and self._is_half(text, reasoning.start):
                self._waiting = ""
        self._state = "lead"
        return Piece("content", "")

    def _thought(self, is_end: bool) -> Piece | None:
        assert self._form.reasoning is not None
        reasoning = self._form.reasoning
        before, found, after = self._waiting.partition(reasoning.end)
        if found:
            self._waiting, self._state = after, "lead"
            self._leads, self._trims = [reasoning.lead, reasoning.answer_start], True
            return Piece("reasoning", before)
        return self._shown("reasoning", reasoning.end, is_end)

    def _lead(self, is_end: bool) -> Piece | None:
        """Between a thought and the answer."""
        text = self._waiting.lstrip() if self._trims else self._waiting
        while self._leads:
            lead = self._leads[0]
            if text.startswith(lead):
                text = text[len(lead) :]
            elif lead.startswith(text) and not is_end:
                return None
            elif self._is_half(text, lead):
                text = ""
            self._leads.pop(0)
            self._waiting = text
        if not text and not is_end:
            return None
        self._waiting = text
        if (syntax := self._form.calls) is not None:
            if syntax.is_anchored and text.lstrip().startswith(syntax.trigger):
                self._state = "calls"
                return Piece("content", "")
            if (bare := syntax.bare) is not None and (known := _begins_like(text, bare.first)) is not False:
                if known is None and not is_end:
                    return None
                if known is None and self._cut is not None and _begins_like(text + self._cut, bare.first) is not False:
                    self._waiting = ""
                if known:
                    self._state = "calls"
                    return Piece("content", "")
        self._state = "content"
        return Piece("content", "")

    def _content(self, is_end: bool) -> Piece | None:
        syntax = self._form.calls
        if syntax is None or syntax.is_anchored:
            if not self._waiting:
                return None
            text, self._waiting = self._waiting, ""
            return Piece("content", text)
        before, found, after = self._waiting.partition(syntax.trigger)
        if found:
            self._waiting, self._state = found + after, "calls"
            return Piece("content", before.rstrip())
        return self._shown("content", syntax.trigger, is_end)

    def _calls(self, is_end: bool) -> Piece | None:
        if self._follower is not None:
            self._follower.follow(self._waiting)
        if self._form.one_call:
            found = (syntax.read_first(self._waiting, self._form.arguments) for syntax in self._form.syntaxes)
            self.calls = self._with_ids([call for call in found if call is not None][:1])
            if self.calls:
                self._state = "over"
        return None

    def _with_ids(self, calls: list[Call]) -> list[Call]:
        """Calls under the ids that they were told by."""
        known = [call.id for call in self.open_calls]
        return [replace(call, id=known[i]) if i < len(known) else call for i, call in enumerate(calls)]

    def _over(self, is_end: bool) -> Piece | None:
        return None

    def _shown(self, kind: Kind, mark: str, is_end: bool) -> Piece | None:
        """What is waiting, but for an end that may be the beginning of a mark, or the white space before one."""
        text = self._waiting
        n = len(text)
        ends = ((k, text[n - k :]) for k in range(min(len(mark) - 1, n), 0, -1))
        n -= next((k for k, end in ends if (self._is_half(end, mark) if is_end else mark.startswith(end))), 0)
        if n < len(text) or (kind == "content" and not is_end):
            n = len(text[:n].rstrip())
        self._waiting = "" if is_end else text[n:]
        return Piece(kind, text[:n]) if n else None

    def _is_half(self, text: str, mark: str) -> bool:
        """Whether a text that was cut off may be the beginning of a mark, which what came behind it goes on with."""
        if self._cut is None or not text or not mark.startswith(text):
            return False
        whole = text + self._cut
        return mark.startswith(whole) or whole.startswith(mark)


def _begins_like(text: str, first: str) -> bool | None:
    """Whether a text begins with another, white space aside; None while it may still."""
    text, first = "".join(text.split()), "".join(first.split())
    if text.startswith(first):
        return True
    return None if first.startswith(text) else False
