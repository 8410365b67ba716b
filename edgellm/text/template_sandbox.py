"""Jinja for templates from strangers: no way out of the sandbox, and bounds on work and memory.

Jinja's sandbox keeps a template away from Python, but lets it loop for hours, or build a string of terabytes
in one short line. Here every operation that a template can reach is sized before it runs and charged to a budget
(`template_budget`), and only what is listed can be reached. Texts remember whether the template wrote them or the chat
did (`provenance`).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.runtime import BlockReference, LoopContext, Macro, Namespace
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgellm.errors import TemplateError
from edgellm.text.provenance import written
from edgellm.text.template_budget import BITS_PER_STEP, CALL, LARGEST_INT_BITS, MACRO, Budget
from edgellm.text.template_compiler import Generation, Generator, Wrap
from edgellm.text.template_filters import Filters
from edgellm.text.template_strings import Strings

# The attributes that values of these types offer. Of what is not listed, Jinja's own objects, it is all public ones.
OFFERED: dict[type, frozenset[str]] = {
    kind: frozenset(names.split())
    for kind, names in {
        str: (
            "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit "
            "islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix "
            "removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip "
            "swapcase title upper zfill"
        ),
        dict: "get items keys values",
        list: "count index",
        tuple: "count index grouper list",  # the last two are those of a group
        int: "",
        float: "",
        range: "",
        types.GeneratorType: "",
        types.FunctionType: "",
        types.MethodType: "",
    }.items()
}
_JINJAS_OWN = ("_loop_vars", "_block_vars")  # arguments that compiled templates pass to Jinja itself


class _Constants(list[str]):
    """The texts that the template's source spells out."""

    def append(self, text: str) -> None:
        super().append(written(text))


class _Namespace(Namespace):
    """Jinja's, which shows all that it holds when printed, and what that holds, and so on."""

    def __init__(*args: Any, **named: Any) -> None:
        for name in dict(*args[1:], **named):
            _check_name(name)
        Namespace.__init__(*args, **named)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


class _Dict:
    """What templates know as `dict`."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """The environment that `transformers` renders chat templates in, with the bounds described above.

    It is for one template. `budget.begin()` comes before each compilation and rendering; only one may run at a time.
    """

    code_generator_class = Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        self.budget = Budget()
        self.strings = Strings(self.budget)
        self.constants = _Constants()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, loopcontrols],
            finalize=self.budget.text,
            cache_size=0,
            optimized=False,
        )
        self.globals = {
            "range": self.globals["range"],
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "dict": _Dict(),
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": self.strings.now,
        }
        offered = Filters(self, self.budget, self.strings)
        self.filters: Any = offered.filters()
        self.tests: Any = offered.tests()

    # What Jinja calls while compiling and rendering

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Wrap().visit(super()._parse(source, name, filename))

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        return self.budget.concat(parts)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self.budget.look(argument)  # it is hashed
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Jinja's, with a short way for what templates ask for most: keys of messages, and names in a namespace."""
        if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        if type(obj) is _Namespace and not attribute.startswith("_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in OFFERED.items():
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's safe stand-in for `str.format` and `str.format_map`, sized."""
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def sized(*args: Any, **named: Any) -> str:
            return self.strings.format(inner, value.__self__, args, named)

        return sized

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("@"):  # `map` takes any name, but those of the compiler are not for templates
            raise SecurityError(f"there is no filter {name!r:.40}")
        return super().call_filter(name, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget, strings = self.budget, self.strings
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return strings.add(left, right)
        if operator == "%" and isinstance(left, str):
            return strings.percent(left, right)
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(sequence, str):
                    return strings.repeat(sequence, times)
                if isinstance(times, int) and isinstance(sequence, (list, tuple)):
                    budget.fits(budget.weigh(sequence) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > LARGEST_INT_BITS:
                raise TemplateError("the chat template computes a huge power; refused")
        elif operator == "+":
            budget.fits(budget.weigh(left) + budget.weigh(right))
        if isinstance(left, int) and isinstance(right, int):
            budget.spend((left.bit_length() + right.bit_length()) // BITS_PER_STEP)
        return budget.admit(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        owner = getattr(__obj, "__self__", None)
        named = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
        if isinstance(owner, str):
            return __self.strings.method(__obj.__name__, owner, *args, **named)
        given = (*args, *named.values())
        budget.fits(sum(map(budget.weigh, given)))
        if isinstance(owner, (list, tuple, dict, LoopContext)) or isinstance(__obj, _Dict):
            budget.look(*given, owner if isinstance(owner, (list, tuple)) else None)
        elif isinstance(__obj, (Macro, BlockReference, LoopContext)):
            budget.spend(MACRO + CALL * len(getattr(__obj, "arguments", ())))
        elif isinstance(owner, _Dict):
            args = (budget.collect(args[0], "fromkeys") if args else (), *args[1:])
        return budget.admit(super().call(__context, __obj, *args, **kwargs))


def _raise_exception(message: Any) -> None:
    raise TemplateError(" ".join(str(message)[:1000].split()))


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no names that begin with an underscore, such as {name!r:.40}")
