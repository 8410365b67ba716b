"""GBNF as Lark: the same texts. Rules that begin with themselves or never end are refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.engine.structure import gbnf, lark
from edgellm.engine.structure.asked import Asked, _of_grammar
from edgellm.engine.structure.constraint import Constraint
from edgellm.errors import UsageError

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""


class Follower:
    """Says which texts a grammar allows, over the tokens of a model."""

    def __init__(self, model, grammar: str) -> None:
        self._tokenizer = model.tokenizer
        self._constraint = Constraint.of(Asked("grammar", _of_grammar(grammar)), model.tokenizer, model.n_vocab)

    def allows(self, text: str) -> bool:
        """Whether a text is a whole one of the grammar, read a byte at a time."""
        matcher = self._constraint.copy()._matcher
        ids = [self._byte(byte) for byte in text.encode()]
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def _byte(self, byte: int) -> int:
        return next(i for i in range(self._tokenizer.n_vocab) if self._tokenizer.token_bytes(i) == bytes([byte]))


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (JSON, ['{"a":1}', '{"a": [1, 2.5e3, null], "b": {"c": "x\\u00e9"}}', "{}"], ['{"a"}', "[1]", '{"a": 01}']),
        ('root ::= "a" | "ab" "c"', ["a", "abc"], ["ab", "c", ""]),
        ('root ::= [a-z]* "x"', ["x", "xx", "abcx"], ["abc", ""]),
        ("root ::= word (\" \" word)*\nword ::= [a-z]+ | \"(\" root \")\"", ["ab", "a (b c) d"], ["a  b", "(a"]),
        ('root ::= item+\nitem ::= [0-9]+ | "<" item* ">"', ["12", "<1<2>>3"], ["<", ">", ""]),
        ("root ::= a a\na ::= [xy]* | \"(\" a \")\"", ["", "xy", "(x)y", "x(y)"], ["(", "z"]),
        ("root ::= [^\\n]{2,3}", ["ab", "abc", "é√"], ["a", "abcd", "a\n"]),
        ('root ::= "\\u00e9\\x41\\\\\\"" ".".', ['éA\\".x'], ['éA\\"x']),
        ("root ::= (\"a\" |\n \"b\")? [-x] # a comment\n\n", ["-", "ax", "b-"], ["ab"]),
        ("root ::= my-rule2{2}\nmy-rule2 ::= \"/\"", ["//"], ["/", "///"]),
        ("root ::= [[\\]]+ [\\-.]", ["[]-", "]."], ["a-"]),
        ('start: "a" item*\nitem: /[0-9]/ | "(" item ")"\n', ["a", "a1(2)"], ["b", "a("]),
        ('start: (X "," | "b")+ // said\nX: "x"i\n', ["x,", "X,b"], ["x", ""]),
    ],
)  # fmt: skip
def test_the_same_texts(model, grammar: str, right: list[str], wrong: list[str]) -> None:
    follower = Follower(model, grammar)
    assert [text for text in right if not follower.allows(text)] == []
    assert [text for text in wrong if follower.allows(text)] == []


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= root "a" | "a"', "left-recursive"),
        ('root ::= a\na ::= b "x" | "y"\nb ::= "q"? a', "left-recursive"),
        ('root ::= ("x"? root) | "y"', "left-recursive"),
        ('start: start "a" | "a"\n', "left-recursive"),
        ('start: a\na: b? c\nc: [b] a "x" | "z"\nb: "b"\n', "left-recursive"),
        ('start: (A?)* start\nA: "a"\n', "left-recursive"),
        ('root ::= "a" root', "no finite text"),
        ('start: "a" b\nb: "(" b ")"\n', "no finite text"),
        ('start: "a" b\nb: "(" c ")"\nc: "," b\n', "no finite text"),
        ('root ::= none "a"', "none"),
        ('other ::= "a"', "root"),
        ('other: "a"\n', "start"),
        ('root ::= "a', "line 1"),
        ('root ::= "a"\nroot ::= "b"', "line 2"),
        ("root ::= [z-a]", "range"),
        ("root ::= []", "class"),
        ('root ::= "\\q"', "escapes"),
        ('root ::= "\\u12"', "hexadecimal"),
        ('root ::= "a"{3,1}', "from less to more"),
        ('root ::= ("a"', '")"'),
        ("root ::= <a>", "token by its number"),
        ('root := "a"\nx ::= "b"', '"::="'),
    ],
)
def test_what_is_refused(grammar: str, words: str) -> None:
    with pytest.raises(UsageError) as told:
        _of_grammar(grammar)
    assert words in str(told.value) and str(told.value).startswith("grammar") and "\n" not in str(told.value)
    assert told.value.parameter == "grammar"


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "a" start | "b"\n',
        'start: x ("+" x)*\nx: /[0-9]+/ | "(" start ")"\n',
        'start: %json {"type": "object", "properties": {"start": {}}}\n',
        'start: a[max_tokens=3] <|tag|> <[12]>\na: "b" -> alias\n  | "c"\n',
        '?start: "x"~2..3 start?\n%ignore /[ ]+/\n',
    ],
)
def test_what_is_right_is_let_through(grammar: str) -> None:
    lark.check("grammar", grammar)


def test_a_grammar_that_cannot_be_read_is_llguidances_to_judge() -> None:
    lark.check("grammar", "start: §\n")
    assert not gbnf.is_gbnf("start: §\n")


def test_masks_are_the_tokens_that_may_come(model) -> None:
    """A mask, bit by bit, is what the matcher takes when asked token by token."""
    follower = Follower(model, "root ::= [ae] [0-9]+")
    constraint = follower._constraint
    mask = np.zeros_like(constraint._mask)
    constraint._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, constraint._n_mask_bytes)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: model.n_vocab]
    taken = [constraint.copy()._matcher.try_consume_tokens([i]) == 1 for i in range(model.n_vocab)]
    assert bits.tolist() == [int(one) for one in taken] and sum(taken) == 4  # each as a byte and as a word
