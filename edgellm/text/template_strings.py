"""Operations on texts inside a template: each is sized before it runs, and its provenance followed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

from edgellm.errors import TemplateError
from edgellm.text import provenance
from edgellm.text.provenance import Text, follows, join, own_of, traced
from edgellm.text.template_budget import CALL, ITEM_BYTES, MOST_ITEMS, Budget

ESCAPED = 6  # characters of "&quot;", the longest that Markup writes for one
FIELD = 1000  # characters of a number in a format without a huge width
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
PADDING = ("center", "ljust", "rjust", "zfill")
# These try the second text anew at every place of the first. (`find` and its like do not.)
NESTED = ("rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip")


class Strings:
    """The operations, with the budget that they are charged to."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def method(self, name: str, text: str, *args: Any, **named: Any) -> Any:
        """`text.name(*args, **named)`"""
        budget = self._budget
        if name == "join" and len(args) == 1:
            return self.join(text, args[0])
        self._size(name, text, [*args, *named.values()])
        if name in provenance.METHODS and follows((text, *args, *named.values())):
            result = provenance.METHODS[name](text, *args, **named)
        else:
            result = getattr(text, name)(*args, **named)
        if isinstance(result, list):
            budget.spend(CALL // 2 * len(result))
            budget.create(ITEM_BYTES * len(result) + len(text))
        return budget.admit(result)

    def add(self, left: str, right: str) -> str:
        self._budget.fits(self._escapes(left, right) * (len(left) + len(right)))
        return self._budget.admit(provenance.add(left, right) if follows((left, right)) else left + right)

    def repeat(self, text: str, times: int) -> str:
        self._budget.fits(len(text) * times)
        return self._budget.admit(provenance.repeat(text, times) if follows((text,)) else text * times)

    def join(self, separator: str, values: Iterable[Any]) -> str:
        budget = self._budget
        parts = budget.collect(values, "join")
        size = sum(map(budget.weigh, parts)) + len(separator) * len(parts)
        budget.fits(self._escapes(separator) * size)
        budget.spend_chars(size)
        return budget.admit(join(separator, parts) if follows((separator, *parts)) else separator.join(parts))

    def percent(self, form: str, values: Any) -> str:
        """`form % values`"""
        huge = r"\d{4}|\*" if "%(" in form else r"%[-#0 +]*(\d*\.)?(\d{4}|\*)"
        listed = values if isinstance(values, tuple) else values.values() if isinstance(values, dict) else (values,)
        self._size_format(form, "%", huge, form, values, listed)
        if follows((form, *listed)):
            return self._budget.admit(provenance.percent(form, values))
        return self._budget.admit(form % values)

    def format(self, inner: Callable[..., str], form: str, args: Sequence[Any], named: Mapping[str, Any]) -> str:
        """`form.format(*args, **named)` or `form.format_map(*args)`, which `inner` does safely."""
        plain = form.replace("{{", "")
        values = [*args, *named.values()]
        self._size_format(form, "{", r"\{[^{}]*(\d{4}|[^{}]\{)", plain, values, values)
        result = inner(*args, **named)
        if inner.__name__ == "format_map":
            named, args = args[0], ()
        if follows((form, *args, *named.values())):
            result = provenance.format_text(result, form, args, named)
        return self._budget.admit(result)

    def escape(self, value: Any) -> str:
        if hasattr(value, "__html__"):
            return value
        text = self._budget.text(value)
        self._budget.fits(len(text) + (ESCAPED - 1) * sum(map(text.count, "&<>'\"")))
        return self._budget.admit(escape(str(text)))

    def indent(self, text: str, by: str, first: bool, blank: bool) -> str:
        """The lines of a text with `by` in front; blank lines and the first only when asked for."""
        lines = self.method("splitlines", self.add(text, "\n"))
        self._budget.fits(self._escapes(text) * (len(text) + len(lines) * (1 + len(by))))
        end = Markup("\n") if isinstance(text, Markup) else "\n"
        pieces: list[str] = []
        for n, line in enumerate(lines):
            indented = (first if n == 0 else blank or line) and by
            pieces += [end] * (n > 0) + [by] * bool(indented) + [line]
        return self.join(Markup("") if isinstance(text, Markup) else "", pieces)

    def now(self, form: str) -> str:
        """The date and time as `strftime` writes it. Each directive is written once, and then sized."""
        if not isinstance(form, str):
            raise TypeError("strftime_now needs a text")
        budget, moment = self._budget, datetime.now()
        budget.spend_chars(len(form))
        budget.few(form.count("%"), "strftime_now")
        known: dict[str, str] = {}
        at, pieces, size = 0, [], len(form)
        for match in re.finditer(r"%[-_0^#+]*\d*[EO:]?[A-Za-z%]", form):
            budget.spend(CALL)
            directive = match[0]
            if directive not in known:
                known[directive] = moment.strftime(directive)  # nothing at all for a huge width
            text = known[directive]
            size += len(text)
            budget.fits(size)
            own = 0 not in own_of(form[match.start() : match.end()])
            pieces += [form[at : match.start()], Text(text, b"\1" * len(text)) if own else text]
            at = match.end()
        return budget.admit(join("", [*pieces, form[at:]]))

    def title(self, text: str, change: Callable[[str], str]) -> str:
        """`change` of a text, which makes a value of every word."""
        self._budget.few(len(text), "title")
        self._budget.spend(3 * len(text))
        return self._budget.admit(traced(change(str(text)), own_of(text)))

    def count_words(self, text: str) -> int:
        self._budget.spend(3 * len(text))
        return sum(1 for _ in re.finditer(r"\w+", text))

    def _size(self, name: str, text: str, options: Sequence[Any]) -> None:
        """Check what a method would make, and charge what it will do."""
        budget, n = self._budget, len(text)
        texts = [option for option in options if isinstance(option, str)]
        widths = [option for option in options if isinstance(option, int)]
        budget.look(*options)
        budget.search(text, max(map(len, texts), default=1))
        if name in PADDING:
            budget.fits(max([n, *widths]))
        elif name == "replace" and len(texts) > 1:
            budget.fits(n + text.count(texts[0]) * len(texts[1]) * self._escapes(text))
        elif name in NESTED:
            budget.spend_chars(n * max([1, *map(len, texts)]))
        if name in ("split", "rsplit"):
            if max(widths, default=-1) < 0:
                n_pieces = text.count(texts[0]) if texts and texts[0] else len(str(text).split(None, MOST_ITEMS))
                budget.few(n_pieces, name)
            else:
                budget.few(min(n, *widths), name)
        elif name == "splitlines":
            budget.few(sum(map(text.count, LINE_ENDS)), name)

    def _size_format(self, form: str, mark: str, huge: str, searched: str, values: Any, listed: Iterable[Any]) -> None:
        """Check what a format would make of some values; `mark` begins a field, `huge` finds a wide one."""
        budget = self._budget
        budget.spend_chars(10 * len(form))
        budget.few(form.count(mark), "format")
        if re.search(huge, searched):
            raise TemplateError("the chat template formats text with a huge or computed width; refused")
        size = len(form) + form.count(mark) * (FIELD + self._escapes(form, *listed) * budget.weigh(values))
        budget.fits(size)
        budget.spend_chars(size)

    @staticmethod
    def _escapes(*texts: Any) -> int:
        return ESCAPED if any(isinstance(text, Markup) for text in texts) else 1
