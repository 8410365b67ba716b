"""The filters and tests that chat templates are offered: what those of models use, and more that is harmless.

Jinja's own do the work where they can. Around each stands what bounds it: a filter that goes through items charges
every one, a filter that needs them all at once gets a list of bounded weight, and one that makes text is sized.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from jinja2.filters import FILTERS, make_attrgetter
from jinja2.tests import TESTS

from edgellm.errors import TemplateError
from edgellm.text.template_budget import CALL, Budget
from edgellm.text.template_strings import Strings

if TYPE_CHECKING:
    from jinja2 import Environment

LARGEST_WIDTH = 10_000  # characters, lines or digits that a filter is asked for
PER_ITEM = 2 * CALL  # steps of a filter or test that is run for each of many items

SMALL = "abs attr count d default first items last length safe"
ONE_BY_ONE = "map reject rejectattr select selectattr"
ALL_AT_ONCE = "batch groupby list max min slice sort unique"
ONE_TEXT = "capitalize lower upper"
NUMBERS = (int, float)
LOOKING_TESTS = ("in", "lower", "upper", "filter", "test", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan",
                 "ge", ">=", "<", "lt", "lessthan", "<=", "le")  # fmt: skip
NUMBER_TESTS = ("odd", "even", "divisibleby")


class Filters:
    """All of them, for one environment and its budget."""

    def __init__(self, environment: Environment, budget: Budget, strings: Strings) -> None:
        self._environment = environment
        self._budget = budget
        self._strings = strings

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            **{name: self._admitted(FILTERS[name]) for name in SMALL.split()},
            **{name: self._streamed(FILTERS[name]) for name in ONE_BY_ONE.split()},
            **{name: self._collected(name, FILTERS[name]) for name in ALL_AT_ONCE.split()},
            **{name: self._text_method(name) for name in ONE_TEXT.split()},
            "center": self._center, "dictsort": self._dictsort, "e": self._strings.escape,
            "escape": self._strings.escape, "float": self._number("float"), "format": self._format,
            "indent": self._indent, "int": self._number("int"), "join": self._join, "replace": self._replace,
            "reverse": self._reverse, "round": self._round, "string": self._budget.text, "sum": self._sum,
            "title": self._title, "tojson": self._tojson, "trim": self._trim, "truncate": self._truncate,
            "wordcount": self._wordcount,
            "@admit": self._budget.admit, "@each": self._budget.each, "@step": self._budget.spend,
            "@look": self._look, "@search": self._search, "@step_to": self._step_to,
        }  # fmt: skip

    def tests(self) -> dict[str, Any]:
        return (
            TESTS
            | {name: self._looking(TESTS[name]) for name in LOOKING_TESTS}
            | {name: _of_numbers(TESTS[name]) for name in NUMBER_TESTS}
        )

    # What the compiler puts into templates

    def _look(self, value: Any) -> Any:
        self._budget.look(value)
        return value

    def _search(self, value: Any, n_searched: int) -> Any:
        self._budget.search(value, n_searched)
        return value

    def _step_to(self, value: Any, steps: int) -> Any:
        self._budget.spend(steps)
        return value

    # Around Jinja's own

    def _admitted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def admitted(*args: Any, **named: Any) -> Any:
            return self._budget.admit(function(*args, **named))

        return admitted

    def _streamed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def streamed(context: Any, value: Any, *args: Any, **named: Any) -> Any:
            return function(context, self._budget.each(value, PER_ITEM) if value else value, *args, **named)

        return streamed

    def _collected(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        budget, with_environment = self._budget, hasattr(function, "jinja_pass_arg")

        @functools.wraps(function)
        def collected(*args: Any, **named: Any) -> Any:
            head, value, options = args[:with_environment], args[with_environment], args[with_environment + 1 :]
            _narrow(name, *options, *named.values())
            items = budget.collect(value, name, PER_ITEM)
            if name == "list":
                return items
            n_rounds = math.ceil(math.log2(len(items) + 2))
            budget.spend(CALL * LARGEST_WIDTH if name == "slice" else 0)
            budget.spend(PER_ITEM * n_rounds * len(items))
            budget.spend_chars(n_rounds * budget.weigh(items))
            return budget.admit(function(*head, items, *options, **named))

        return collected

    def _looking(self, test: Any) -> Callable[..., Any]:
        @functools.wraps(test)
        def looking(*args: Any) -> Any:
            self._budget.look(*args)
            self._budget.search(args[-1])
            return test(*args)

        return looking

    def _number(self, name: str) -> Callable[..., Any]:
        @functools.wraps(FILTERS[name])
        def number(value: Any, *args: Any, **named: Any) -> Any:
            self._budget.spend(3 * self._budget.weigh(value))
            return self._budget.admit(FILTERS[name](value, *args, **named))

        return number

    # Texts

    def _text_method(self, name: str) -> Callable[..., Any]:
        return lambda value: self._strings.method(name, self._budget.text(value))

    def _trim(self, value: Any, chars: str | None = None) -> str:
        return self._strings.method("strip", self._budget.text(value), chars)

    def _center(self, value: Any, width: int = 80) -> str:
        return self._strings.method("center", self._budget.text(value), width)

    def _title(self, value: Any) -> str:
        return self._strings.title(self._budget.text(value), FILTERS["title"])

    def _wordcount(self, value: Any) -> int:
        return self._strings.count_words(self._budget.text(value))

    def _truncate(self, value: str, length: int = 255, *options: Any, **named: Any) -> str:
        _narrow("truncate", length, *options, *named.values())
        self._budget.look(value, *options, *named.values())
        return self._budget.admit(FILTERS["truncate"](self._environment, value, length, *options, **named))

    def _format(self, value: Any, *args: Any, **named: Any) -> str:
        if args and named:
            raise TypeError("can't handle positional and keyword arguments at the same time")
        return self._strings.percent(self._budget.text(value), named or args)

    def _indent(self, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        by = width if isinstance(width, str) else self._strings.repeat(" ", width)
        return self._strings.indent(value, by, first, blank)

    def _replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = (self._plain(self._budget.text(part)) for part in (value, old, new))
        return self._strings.method("replace", text, old, new, -1 if count is None else count)

    def _join(self, values: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        parts = self._budget.each(self._attribute(values, attribute), 0)
        return self._strings.join(
            self._plain(self._budget.text(d)), (self._plain(self._budget.text(part)) for part in parts)
        )

    @staticmethod
    def _plain(text: str) -> str:
        """Markup as the text that it is: these filters do not escape."""
        return str(text) if hasattr(text, "__html__") else text

    # Numbers

    def _round(self, value: float, precision: int = 0, method: str = "common") -> float:
        if not isinstance(value, NUMBERS):
            raise TypeError("round needs a number")
        _narrow("round", precision)
        return self._budget.admit(FILTERS["round"](value, precision, method))

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> Any:
        if not isinstance(start, NUMBERS):
            raise TypeError("sum adds numbers only")
        return self._budget.admit(sum(self._budget.each(self._attribute(values, attribute)), start))

    # Lists

    def _reverse(self, value: Any) -> Any:
        if not hasattr(value, "__len__"):
            value = self._budget.collect(value, "reverse")
        return self._budget.admit(FILTERS["reverse"](value))

    def _dictsort(self, value: Any, *args: Any, **named: Any) -> Any:
        n_rounds = math.ceil(math.log2(len(value) + 2))
        self._budget.few(len(value), "dictsort")
        self._budget.spend(PER_ITEM * n_rounds * len(value))
        self._budget.spend_chars(n_rounds * self._budget.weigh(value))
        return self._budget.admit(FILTERS["dictsort"](value, *args, **named))

    def _attribute(self, values: Iterable[Any], attribute: str | int | None) -> Iterable[Any]:
        return values if attribute is None else map(make_attrgetter(self._environment, attribute), values)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as `transformers` writes it into prompts: readable Unicode, nothing escaped for HTML."""
        budget = self._budget
        budget.look(budget.admit(value))
        budget.fits((indent if isinstance(indent, int) else len(indent or "")) * (1 + budget.depth(value)))
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return budget.concat(budget.each(encoder.iterencode(value)))


def _of_numbers(test: Any) -> Callable[..., Any]:
    """These compute `value % number`, which would format a text."""

    @functools.wraps(test)
    def of_numbers(value: Any, *args: Any) -> Any:
        if isinstance(value, str):
            raise TypeError("expected a number, found a text")
        return test(value, *args)

    return of_numbers


def _narrow(name: str, *options: Any) -> None:
    if any(isinstance(option, int) and abs(option) > LARGEST_WIDTH for option in options):
        raise TemplateError(f"the chat template passes a huge number to its filter {name}; refused")
