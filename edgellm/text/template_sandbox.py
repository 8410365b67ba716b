"""Jinja for templates from strangers: no way out of the sandbox, and bounds on time and memory.

Jinja's sandbox keeps a template away from Python, but lets it loop for hours, or build a string of terabytes
in one short line. Nothing can stop a single operation in C once it runs, so each is made small beforehand:

- every value has a weight, the characters it would take to write it out in full, and none may be heavier than
  LARGEST. A list that holds one list twice weighs twice as much, so what a few nested lines can blow up
  (printing, comparing, hashing) stays bounded too;
- what a template creates is charged to a budget, CREATED in all;
- operations whose result can be far larger than their operands (`*`, `%`, `**`, replace, join, format,
  indent) are sized before they run;
- every loop step, call, filter, test, comparison and lookup looks at the clock.

To see all of these, a few kinds of expressions are wrapped in hidden filters as the template is parsed.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Namespace
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from edgellm.errors import TemplateError

SECONDS = 0.35  # of this thread's processor time, for compiling and for each rendering
LARGEST = 4_000_000  # characters of any one value, and of the rendered text
CREATED = 64_000_000  # characters created in one rendering
MOST_TOKENS = 10_000  # of the template's source; the longest known templates have under 2,000
LARGEST_INT_BITS = 4096
LARGEST_WIDTH = 10_000  # that a filter of SIZED_FILTERS takes
MOST_ITEMS = 200_000  # that a filter of ITEM_FILTERS goes through
ITEM = 8  # what a number, or the frame of a list, weighs

# What the templates of models use, and more that is harmless; Jinja's others can blow up.
OFFERED_FILTERS = (
    "abs attr batch capitalize center count d default dictsort e escape first float groupby int items last "
    "length list lower map max min reject rejectattr reverse round safe select selectattr slice sort string "
    "title trim truncate unique upper wordcount"
)
SIZED_FILTERS = ("batch", "center", "round", "slice", "truncate")
ITEM_FILTERS = ("batch", "dictsort", "groupby", "list", "map", "max", "min", "reject", "rejectattr", "select",
                "selectattr", "slice", "sort", "unique")  # fmt: skip
OFFERED_METHODS = {
    str: (
        "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal "
        "isdigit islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
        "removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines "
        "startswith strip swapcase title upper zfill"
    ),
    dict: "get items keys values",
    list: "count index",
    tuple: "count index",
    int: "",
    float: "",
    range: "",
}


class Budget:
    """What one compilation or rendering may still spend."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + SECONDS
        self._left = CREATED
        self._weights: dict[int, tuple[int, Any]] = {}

    def tick(self) -> None:
        """Raises TemplateError once the time is over."""
        if time.thread_time() > self._deadline:
            raise TemplateError(f"the chat template runs for more than {SECONDS} s; expected milliseconds")

    def fits(self, size: float) -> None:
        """Raises TemplateError for something larger than any value may be."""
        if size > LARGEST:
            raise TemplateError(f"the chat or its template holds over {LARGEST:,} characters; refused")

    def charge(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TemplateError(f"the chat template makes over {CREATED:,} characters in all; refused")

    def admit(self, value: Any) -> Any:
        """Count a value that has just been created, and return it."""
        self.tick()
        if isinstance(value, str):
            self.fits(len(value))
            self.charge(len(value))
        elif isinstance(value, int):
            if value.bit_length() > LARGEST_INT_BITS:
                raise TemplateError(f"the chat template makes a number of over {LARGEST_INT_BITS} bits; refused")
        elif isinstance(value, (list, tuple, dict)):
            self.weigh(value)
            self.charge(ITEM * len(value))
        return value

    def weigh(self, value: Any) -> int:
        """The weight of a value. Those of lists are remembered, so that each is added up once."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, (list, tuple, dict)):
            return ITEM
        known = self._weights.get(id(value))
        if known is None:
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            weight = ITEM + sum(map(self.weigh, parts))
            self.fits(weight)
            known = self._weights[id(value)] = weight, value  # held, so that its id stays its own
        return known[0]

    def text(self, value: Any) -> str:
        """A value as a template writes it."""
        return value if type(value) is str else self.admit(str(self.admit(value)))

    def each(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.tick()
            yield item

    def concat(self, parts: Iterable[str]) -> str:
        """What a template, or a block of one, has written."""
        pieces, size = [], 0
        for piece in parts:
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST:
                self.fits(size)
        return self.admit("".join(pieces))

    def join(self, separator: str, values: Iterable[Any]) -> str:
        """`separator.join(values)`, sized."""
        parts = list(self.each(values))
        escapes = 6 if isinstance(separator, Markup) else 1  # Markup writes "&quot;" for a quote
        self.fits(escapes * sum(map(self.weigh, parts)) + len(separator) * len(parts))
        return self.admit(separator.join(parts))

    def sized_format(self, form: str, mark: str, values: Any) -> None:
        """Size `form % values` or `form.format(values)`; `mark` is what begins a field, "%" or "{"."""
        if mark == "{":
            huge = re.search(r"\{[^{}]*(\d{4}|[^{}]\{)", form.replace("{{", ""))
        elif "%(" in form:
            huge = re.search(r"\d{4}|\*", form)
        else:
            huge = re.search(r"%[-#0 +]*(\d*\.)?(\d{4}|\*)", form)
        if huge:
            raise TemplateError("the chat template formats text with a huge or computed width; refused")
        self.fits(len(form) + form.count(mark) * (1000 + self.weigh(values)))


class _Wrap(NodeTransformer):
    """Puts hidden filters around the expressions that the environment would not see otherwise."""

    def _counted(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return nodes.Filter(node, "_admit", [], [], None, None, lineno=node.lineno)

    visit_List = visit_Dict = visit_Compare = _counted

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._counted(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        return self._counted(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_each", [], [], None, None, lineno=node.lineno)
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError("autoescape blocks are not offered to chat templates")


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it is only a block."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for n, token in enumerate(stream):
            if n > MOST_TOKENS:
                raise TemplateError(f"the chat template has over {MOST_TOKENS:,} tokens; refused")
            yield token


class _Namespace(Namespace):
    """Jinja's, which shows all that it holds when printed, and what that holds, and so on."""

    def __repr__(self) -> str:
        return "<Namespace>"


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """The environment that `transformers` renders chat templates in, with the bounds described above.

    `budget` must be set anew before each compilation and rendering; only one of them may run at a time.
    """

    budget: Budget
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=lambda value: self.budget.text(value),
            cache_size=0,
        )
        self.globals = {
            "range": self.globals["range"],
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }
        self.tests = {name: self._timed(test) for name, test in TESTS.items()}
        self.filters = {name: self._counted(name, FILTERS[name]) for name in OFFERED_FILTERS.split()} | {
            "_admit": lambda value: self.budget.admit(value),
            "_each": lambda value: self.budget.each(value),
            "format": self._format,
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "sum": self._sum,
            "tojson": self._tojson,
        }

    # What Jinja calls while compiling and rendering

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Wrap().visit(super()._parse(source, name, filename))

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        return self.budget.concat(parts)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.budget.tick()
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in OFFERED_METHODS.items():
            if isinstance(obj, kind):
                return attr in names.split()
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's safe stand-in for `str.format`, sized."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def sized(*args: Any, **kwargs: Any) -> str:
            self.budget.sized_format(value.__self__, "{", [*args, *kwargs.values()])
            return inner(*args, **kwargs)

        return sized

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(times, int):
                    budget.fits(budget.weigh(sequence) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > LARGEST_INT_BITS:
                raise TemplateError("the chat template computes a huge power; refused")
        elif operator == "%" and isinstance(left, str):
            budget.sized_format(left, "%", right)
        return budget.admit(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        budget.tick()
        budget.fits(sum(map(budget.weigh, args)) + sum(map(budget.weigh, kwargs.values())))
        if isinstance(text := getattr(__obj, "__self__", None), str):
            name = __obj.__name__
            if name == "join" and len(args) == 1:
                return budget.join(text, args[0])
            if name == "replace" and len(args) >= 2:
                budget.fits(len(text) + text.count(args[0]) * len(args[1]))
            elif name in ("center", "ljust", "rjust", "zfill"):
                budget.fits(args[0] if args and isinstance(args[0], int) else 0)
        return budget.admit(super().call(__context, __obj, *args, **kwargs))

    # Filters and tests

    def _timed(self, test: Any) -> Callable[..., Any]:
        @functools.wraps(test)
        def timed(*args: Any) -> Any:
            self.budget.tick()
            return test(*args)

        return timed

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        widest = LARGEST_WIDTH if name in SIZED_FILTERS else math.inf
        longest = MOST_ITEMS if name in ITEM_FILTERS else math.inf

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            options = [*args[1:], *kwargs.values()]
            if any(isinstance(option, int) and abs(option) > widest for option in options):
                raise TemplateError(f"the chat template passes a huge number to its filter {name}; refused")
            for argument in args[:2]:  # the first may be Jinja's own context
                if isinstance(argument, (str, list, tuple, dict)) and len(argument) > longest:
                    raise TemplateError(f"the chat template has over {longest:,} items for {name}; refused")
            return self.budget.admit(function(*args, **kwargs))

        return counted

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        form = self.budget.text(value)
        self.budget.sized_format(form, "%", kwargs or args)
        return self.budget.admit(form % (kwargs or args))

    def _indent(self, value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        by = width if isinstance(width, int) else len(width)
        self.budget.fits(len(value) + (value.count("\n") + 1) * by)
        return self.budget.admit(FILTERS["indent"](value, width, first, blank))

    def _replace(self, value: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = map(self.budget.text, (value, old, new))
        self.budget.fits(len(text) + text.count(old) * len(new))
        return self.budget.admit(text.replace(old, new, -1 if count is None else count))

    def _join(self, values: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
        parts = self.budget.each(self._attribute(values, attribute))
        return self.budget.join(self.budget.text(d), map(self._as_text, parts))

    def _as_text(self, value: Any) -> str:
        return value if isinstance(value, str) else self.budget.text(value)

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> Any:
        if not isinstance(start, (int, float)):
            raise TypeError("sum adds numbers only")
        return self.budget.admit(sum(self.budget.each(self._attribute(values, attribute)), start))

    def _attribute(self, values: Iterable[Any], attribute: str | int | None) -> Iterable[Any]:
        return values if attribute is None else map(make_attrgetter(self, attribute), values)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as `transformers` writes it into prompts: readable Unicode, nothing escaped for HTML."""
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.budget.admit(value)
        self.budget.fits(indent if isinstance(indent, int) else len(indent or ""))
        return self.budget.concat(self.budget.each(encoder.iterencode(value)))


def _raise_exception(message: Any) -> None:
    raise TemplateError(" ".join(str(message)[:1000].split()))
