"""Compiling a template, so that its work is counted and its own text is known from the chat's.

A few kinds of expressions are wrapped in hidden filters as the template is parsed, since the environment would not
see them otherwise. `@admit` counts what an expression has made, `@look` what an operation is about to look at, and
`@each` and `@step` the work of a loop, a branch or a macro, which is known from its source. No template can write
these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from edgellm.errors import TemplateError
from edgellm.text.template_budget import CALL, SHORT_NEEDLE

MOST_TOKENS = 10_000  # of the template's source; the longest known templates have under 2,000
LEAST_STEPS = 10  # of a branch that is worth counting by itself

_CALLS = (nodes.Call, nodes.Filter, nodes.Test, nodes.Getattr, nodes.Getitem, nodes.Output, nodes.BinExpr)
_CONSTANTS = (nodes.Const, nodes.List, nodes.Tuple)


class Wrap(NodeTransformer):
    """Puts hidden filters into a parsed template."""

    def __init__(self) -> None:
        self._counted_nodes: set[int] = set()  # whose steps are charged already

    # Expressions

    def _admitted(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(node, "@admit")

    visit_List = _admitted

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._admitted(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _filter(pair.key, "@look")  # it is hashed
        return _filter(node, "@admit")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        return self._admitted(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        """Two values are compared as far as the shorter goes, a container is searched to its end."""
        left: Any = node.expr
        self.generic_visit(node)
        for operand in node.ops:
            right = operand.expr
            if operand.op in ("in", "notin"):
                n_searched = len(left.value) if _is_text(left) else SHORT_NEEDLE
                operand.expr = _filter(right, "@search", n_searched)
            elif not (isinstance(left, _CONSTANTS) or isinstance(right, nodes.Const)):
                operand.expr = _filter(right, "@look")
            left = right
        return node

    # Statements

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        steps = CALL + sum(map(self._steps, node.body)) + (self._steps(node.test) if node.test else 0)
        node.iter = _filter(node.iter, "@each", steps)
        if node.recursive:  # what it calls itself with is not wrapped
            if node.test:
                node.test = _filter(node.test, "@step_to", self._steps(node.test))
            self._count(node.body, least=0)
        self._counted_nodes.update(map(id, node.body))
        self._count(node.else_)
        return node

    def visit_If(self, node: nodes.If) -> nodes.If:
        self.generic_visit(node)
        self._count(node.body)
        self._count(node.else_)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        self.generic_visit(node)
        self._count(node.body, least=0)
        return node

    visit_CallBlock = visit_Block = visit_Macro  # type: ignore[assignment]

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError("autoescape blocks are not offered to chat templates")

    def _count(self, body: list[nodes.Node], least: int = LEAST_STEPS) -> None:
        """Charge the steps of a body as it begins, unless they are few: then they are part of what is around."""
        steps = CALL + sum(map(self._steps, body))
        if body and steps >= CALL + least:
            self._counted_nodes.update(map(id, body))
            lineno = body[0].lineno
            body.insert(0, nodes.ExprStmt(_filter(nodes.Const(steps, lineno=lineno), "@step"), lineno=lineno))
            self._counted_nodes.add(id(body[0]))

    def _steps(self, node: nodes.Node) -> int:
        """What running a node once costs, without the bodies inside that are charged by themselves."""
        if id(node) in self._counted_nodes:
            return 0
        return (CALL if isinstance(node, _CALLS) else 1) + sum(map(self._steps, node.iter_child_nodes()))


def _is_text(node: Any) -> bool:
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def _filter(node: Any, name: str, *constants: Any) -> nodes.Filter:
    args = [nodes.Const(constant, lineno=node.lineno) for constant in constants]
    return nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)


class Generator(CodeGenerator):
    """Writes the template's own texts into the compiled program as such: as `constants` of the environment."""

    environment: Any

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, str):
            self.write(self._written(node.value))
        else:
            super().visit_Const(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
        if not isinstance(key, str):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.getitem(")  # a key is only looked up, and found faster when it is a plain text
        self.visit(node.node, frame)
        self.write(f", {key!r})")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._written("".join(group))

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(f"({finalize.src}")  # which gives a text already; `str` around it would forget whose it is

    def _written(self, text: str) -> str:
        constants = self.environment.constants
        constants.append(text)
        return f"environment.constants[{len(constants) - 1}]"


class Generation(Extension):
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
