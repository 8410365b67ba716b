"""Hostile chat templates end within a second, in one clear error, without large memory; work is counted, not timed."""

from __future__ import annotations

import threading
import time

import pytest

from edgellm.errors import TemplateError
from edgellm.text import ChatTemplate

WORDS = "{% set words = 'x ' * 2000000 %}"
BIG = "{% set big = 'x' * 1000000 %}"
GROW = "{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{{% set ns.s = {step} %}}{{% endfor %}}{use}"


def grow(start: str, step: str, use: str = "{{ ns.s }}") -> str:
    return GROW.format(start=start, step=step, use=use)


HOSTILE = {
    # malformed
    "syntax": "{% if %}",
    "unclosed": "{{ 1",
    "unknown tag": "{% nonsense %}",
    "unknown filter": "{{ 1 | nonsense }}",
    "many comments": "{#" * 100_000,
    "endless text literal": "{{ '" + "a" * 900_000,
    "much white space": "\n \t" * 300_000 + "{{",
    "break without loop": "{% break %}",
    "no caller": "{{ caller() }}",
    # too much source
    "long source": " " * 1_000_001,
    "many expressions": "{{ a }}" * 140_000,
    "long sum": "{{ " + "a+" * 300_000 + "a }}",
    "deep parentheses": "{{ " + "(" * 50_000 + ")" * 50_000 + " }}",
    "many nots": "{{ " + "not " * 50_000 + "a }}",
    "many signs": "{{ " + "-" * 50_000 + "1 }}",
    "deep ifs": "{% if a %}" * 10_000 + "{% endif %}" * 10_000,
    "deep fors": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "long attribute chain": "{{ a" + ".a" * 4500 + " }}",
    "long filter chain": "{{ a" + "|list" * 4500 + " }}",
    "long constant": "{{ " + "9" * 900_000 + " }}",
    # out of the sandbox
    "class": "{{ ''.__class__.__mro__ }}",
    "class by filter": "{{ (messages | attr('__class__')).x.y }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format(1).x.y }}",
    "globals of a function": "{{ raise_exception.__globals__.x }}",
    "globals of a class": "{{ cycler.__init__.__globals__ }}",
    "environment": "{{ self.__init__.__globals__ }}",
    "frame": "{{ (messages | map('string')).gi_frame.f_globals }}",
    "code": "{% macro m() %}{% endmacro %}{{ m._func.__code__.co_code }}",
    "changed list": "{{ messages.append(1) }}",
    "changed dict": "{{ messages[0].update({'a': 1}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "bytes": "{{ 'a'.encode() }}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    # endless
    "long range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for c in 'x' * 4000000 %}{% for d in 'x' * 4000000 %}{% endfor %}{% endfor %}",
    "loops in filters": "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
    "searches": "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ -1 in l }}{% endfor %}",
    "counts": "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ l.count(7) }}{% endfor %}",
    "comparisons": BIG + "{% set other = big ~ '' %}" + "{{ 'abb' in big }}{{ big == other }}" * 1500,
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "doubling recursion": "{% macro m(n) %}{{ m(n-1) ~ m(n-1) if n }}{% endmacro %}{{ m(60) }}",
    "doubling callers": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 60 + "x" + "{% endcall %}" * 60,
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "recursive block": "{% block b %}{{ self.b() }}{% endblock %}",
    "power": "{{ (2**4000)**(2**4000) }}",
    "repeated squares": grow("9", "ns.s * ns.s"),
    "hashes": "{% set t = (1,) * 300000 %}{% set d = {1: 2} %}" + "{{ d[t] }}" * 1500,
    # huge
    "times": "{{ 'a' * 10**9 }}",
    "times, reversed": "{{ 10**9 * [1] }}",
    "messages": "{% set messages = messages * 1000000 %}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent precision": "{{ '%.1000000000f' % 1 }}",
    "percent key": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "percent repeated": "{{ '%(a)s' * 100000 % {'a': 'x' * 100000} }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format computed": "{{ '{:{}}'.format(1, 10**9) }}",
    "format map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "format repeated": "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "tilde": grow("'ab'", "ns.s ~ ns.s"),
    "plus": grow("'ab'", "ns.s + ns.s"),
    "lists": grow("[1]", "ns.s + ns.s"),
    "nested lists": grow("[1]", "[ns.s, ns.s]"),
    "nested lists by times": grow("[1]", "[ns.s] * 2"),
    "nested tuples as keys": grow("(1,)", "(ns.s, ns.s)", "{{ {ns.s: 1} }}"),
    "nested dicts as JSON": grow("{}", "{'a': ns.s, 'b': ns.s}", "{{ ns.s | tojson }}"),
    "nested dicts by call": grow("{}", "dict(a=ns.s, b=ns.s)", "{{ ns.s | tojson }}"),
    "arguments": "{% macro m(n) %}{{ m(n-1, varargs, varargs) if n }}{% endmacro %}{{ m(60) }}",
    "markup": grow("'<' | e", "ns.s ~ '&' ~ ns.s"),
    "deep list": grow("[1]", "[ns.s]").replace("range(60)", "range(90000)"),
    "deep JSON": grow("[1]", "[ns.s]", "{{ ns.s | tojson }}").replace("range(60)", "range(5000)"),
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace between": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join": "{{ ('a' * 100000).join(range(99999) | map('string')) }}",
    "join filter": "{{ range(99999) | join('a' * 100000) }}",
    "join markup": "{{ (('<' * 100000) | e).join(range(99999) | map('string')) }}",
    "many parts": BIG + "{{ [big, big, big, big, big] | join }}",
    "many results": BIG + "{{ range(99999) | map('replace', 'x', big) | list }}",
    "many copies": BIG + "".join(f"{{% set c{i} = big[1:] %}}" for i in range(800)),
    "written": BIG + "{{ big }}" * 2000,
    "written in a macro": "{% macro m(b) %}" + "{{ b }}" * 2000 + "{% endmacro %}{{ m('x' * 1000000) }}",
    "lists written in a macro": "{% macro m(b) %}" + "{{ b }}" * 2000 + "{% endmacro %}{{ m([1] * 99999) }}",
    "set to a block": BIG + "{% set c %}" + "{{ big }}" * 2000 + "{% endset %}",
    "center": "{{ 'a'.center(10**9) }}",
    "center filter": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "indent by text": "{{ ('a\n' * 100000) | indent(width='a' * 100000) }}",
    "JSON indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "JSON indent by text": "{{ range(99999) | list | tojson(indent='x' * 100000) }}",
    "JSON separators": "{{ range(99999) | list | tojson(separators=['x' * 100000, 'y']) }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "word wrap": "{{ ('a' * 100000) | wordwrap(1, wrapstring='b' * 100000) }}",
    "sum of lists": "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "lorem ipsum": "{{ lipsum(1000000) }}",
    "dates": "{{ strftime_now('%c' * 1999999) }}",
    "years": "{{ strftime_now('%Y' * 1999999) }}",
    "title": WORDS + "{{ words | title }}",
    "split": WORDS + "{{ words.split() | length }}",
    "split at a text": WORDS + "{{ words.split(' ') | length }}",
    "split from the right": WORDS + "{{ words.rsplit() | length }}",
    "split often": WORDS + "{{ words.split(' ', 1000000) | length }}",
    "split at line ends": "{{ ('\u2028' * 1000000).splitlines() | length }}",
    "characters": WORDS + "{{ words | list | length }}",
    "sorted characters": WORDS + "{{ words | sort | length }}",
    "found from the right": "{{ ('a' * 2000000).rfind('ab' ~ 'a' * 1000000) }}",
    "cut from the right": "{{ ('a' * 2000000).rpartition('ab' ~ 'a' * 1000000) }}",
    "found at every place": "{% set t = 'a' * 29999 %}{% set p = 'a' * 49 ~ 'b' ~ 'a' * 49 %}"
    "{% for i in range(99999) %}{{ t.find(p) }}{{ p in t }}{{ t.count(p) }}{% endfor %}",
    "strip many": "{{ ('a' * 2000000).strip('b' * 1000000 ~ 'a') }}",
    "trim many": "{{ ('a' * 2000000) | trim('b' * 1000000 ~ 'a') }}",
    "odd text": "{{ '%1000000000d' is odd }}",
    "even texts": "{{ ['%1000000000d'] | select('even') | list }}",
    "divisible text": "{{ '%1000000000d' is divisibleby(3) }}",
    "rounded text": "{{ 'x' | round(9, 'ceil') }}",
    "rounded list": "{{ [1] | round(8, 'floor') }}",
    "deep JSON with indent": grow("[1]", "[ns.s]", "{{ ns.s | tojson(indent=3900000) }}"),
    "JSON in ASCII": "{{ ('\U0010ffff' * 3999999) | tojson(ensure_ascii=true) }}",
    "written with escapes": "{{ ['\x00' * 3999990] }}",
    "filters in a row": "{{ range(99999)" + " | select" * 400 + " | list | length }}",
    "recursive loop over many": "{% set l = range(99999) | list %}{% for i in [1] recursive %}"
    "{% if loop.first %}{{ loop(l) }}{% endif %}{% endfor %}",
    "recursive loop that picks": "{% set l = range(99999) | list %}{% for i in l if i == 0 recursive %}{{ loop(l) }}"
    "{% endfor %}",
    "keys of one dict": "{% set t = (1,) * 400000 %}{% set d = {" + "t: 1, " * 1500 + "} %}",
    "heavy defaults": "{% set t = (1,) * 400000 %}{{ range(99999) | map(attribute='x', default=t) | unique | list }}",
    "heavy sort": BIG + "{{ range(99999) | map(attribute='x', default=big) | sort }}",
    "searched range": "{% for i in range(99999) %}{{ 'a' in range(99999) }}{% endfor %}",
    "searched values": "{% set d = dict.fromkeys(range(99999), 'x') %}{% for i in range(99999) %}"
    "{{ 'a' in d.values() }}{% endfor %}",
    "lists compared": "{% set a = range(99999) | list %}{% set b = range(99999) | list %}"
    "{% for i in range(99999) %}{{ a == b }}{{ a < b }}{% endfor %}",
    "long body": "{% for i in range(99999) %}" + "{% set a = i %}" * 1500 + "{% endfor %}",
    "many conditions": "{% for i in range(99999) %}{% if false %}a" + "{% elif i == -1 %}x" * 900
    + "{% endif %}{% endfor %}",
    "many arguments": "{% macro m(" + ",".join(f"a{i}=1" for i in range(900)) + ") %}{% endmacro %}"
    "{% for i in range(99999) %}{{ m() }}{% endfor %}",
    "long caller": "{% macro m() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call m() %}" + "{% set a = 1 %}" * 1500 + "{% endcall %}",
    "long block": "{% block b %}" + "{% set a = 1 %}" * 1500 + "{% endblock %}"
    "{% for i in range(99999) %}{{ self.b() }}{% endfor %}",
    "deep tuple": grow("(1,)", "(ns.s,)", "{{ {ns.s: 1} }}").replace("range(60)", "range(90000)"),
    "hidden filter": "{{ 1 | @step }}",
    "work given back": "{{ [-1000000000] | map('@step') | list }}",
    "long casefold": "{{ ('\u0390' * 3999999).casefold() }}",
    "escaped": "{{ ('\"' * 3999999) | e }}",
    "escaped by a sum": "{{ ('<' | e) + '\"' * 3999999 }}",
    "escaped by a format": "{{ ('%s' | e) % ('\"' * 3999999) }}",
    "long number in hexadecimal": "{{ ('f' * 3999999) | int(base=16) }}",
    "large numbers": "{% set ns = namespace(s=3) %}{% for i in range(99999) %}{% set ns.s = ns.s * 3 % 7 ** 1400 %}"
    "{% endfor %}" * 9,
    "numbers from long texts": "{% for i in range(99999) %}{{ ('9' * 3999999) | float }}{% endfor %}",
    "many new lists": "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}"
    "{% set ns.s = ns.s + [range(9999) | list] %}{% endfor %}",
    "many wide texts": "{% set t = '\U0001f600' * 900000 %}" + "".join(f"{{% set c{i} = t[1:] %}}" for i in range(300)),
    "cycled": "{% set l = range(99999) | list %}{% for i in range(99999) %}{{ loop.cycle(*l) }}{% endfor %}",
    "changed": "{% set a = range(99999) | list %}{% set b = range(99999) | list %}"
    "{% for i in range(99999) %}{{ loop.changed(a if i is odd else b) }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_end_in_one_clear_error(source):
    resource = pytest.importorskip("resource")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    with pytest.raises(TemplateError, match=r"^[^\n]{5,500}$"):
        ChatTemplate(source).render([{"role": "user", "content": "hi"}])
    assert time.thread_time() - start < 4  # about one on a quiet machine; what is not bounded takes minutes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KB


HARMLESS = {
    "namespaces in namespaces": (grow("namespace(x=1)", "namespace(a=ns.s, b=ns.s)"), "<Namespace>"),
    "a huge date": ("{{ strftime_now('%1000000000d' * 1000) | length < 4000000 }}", "True"),
    "blown-up date": ("{{ strftime_now('%Y' * 100000) | length }}", "400000"),
    "a number too long": ("{{ ('9' * 1000000) | int }}", "0"),
    "a year in a format": ("{{ 'in 2024: %s, %d' % ('x', 5) }}{{ '2024 {{}} {}'.format(1) }}", None),
    "a wide date": ("{{ strftime_now('%1000000000d' ~ 'x' * 3999000) | length }}", "3999000"),
    "names of days": ("{{ strftime_now('%c' * 100000) | length > 100000 }}", "True"),
    "a long title": ("{{ ('x ' * 2000000).title() | length }}", "4000000"),
    "a long trim": ("{{ ('x ' * 2000000) | upper | trim | length }}", "3999999"),
    "a few pieces": ("{{ ('x ' * 1000000).split(none, 2) | length }}", "3"),
    "100,000 values": ("{{ range(100000) | list | length }}", "100000"),
}


@pytest.mark.parametrize("source, expected", HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_templates_pass(source, expected):
    rendered = ChatTemplate(source).render([])
    assert expected is None or rendered == expected


def test_long_chats_are_rendered():
    source = "{% for m in messages %}{{ '<' + m.role + '>' ~ m['content'] | trim }}\n{% endfor %}"
    chat = [{"role": "user", "content": f" message {i} " * 100} for i in range(1000)]
    assert len(ChatTemplate(source).render(chat)) > 1_000_000


LOOKING_BACK = """
{%- for message in messages -%}
    {%- set before = namespace(role=none, found=false) -%}
    {%- for j in range(loop.index0 - 1, -1, -1) -%}
        {%- if not before.found and messages[j]['role'] != 'tool' -%}
            {%- set before.role = messages[j]['role'] -%}{%- set before.found = true -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if message.role != before.role -%}{{- '<|turn>' + message['role'] + '\n' -}}{%- endif -%}
    {{- message['content'] | trim + '<turn|>\n' -}}
{%- endfor -%}"""


def turns(n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}] * n


@pytest.mark.parametrize("n", [200, 600])
def test_a_template_may_look_back_from_every_message(n):
    assert ChatTemplate(LOOKING_BACK).render(turns(n)).count("<|turn>") == 2 * n


def test_two_thousand_turns_of_any_template(shared):
    for path in sorted((shared / "templates").glob("*.jinja")):
        template = ChatTemplate(path.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"})
        chat = [*turns(2000), {"role": "user", "content": "Bye"}]
        prompt = template.render(chat, tools=[], documents=[])
        assert prompt.count("Hi there") == 2000, path.name


def test_a_longer_chat_may_cost_more_but_not_without_end():
    triple = "{% for a in messages %}{% for b in messages %}{% for c in messages %}{% endfor %}{% endfor %}{% endfor %}"
    assert ChatTemplate(triple).render(turns(10)) == ""
    with pytest.raises(TemplateError, match="far more work than a chat of this size needs"):
        ChatTemplate(triple).render(turns(150))


def test_a_busy_machine_changes_nothing(monkeypatch):
    ticks = iter(range(10**9))
    for clock in ("time", "monotonic", "perf_counter", "thread_time", "process_time"):
        monkeypatch.setattr(time, clock, lambda: next(ticks))
    assert len(ChatTemplate(LOOKING_BACK).render(turns(50))) > 1000


def test_a_chat_beyond_all_bounds_is_refused():
    with pytest.raises(TemplateError, match="over 4,000,000 characters"):
        ChatTemplate("{{ messages[0].content | length }}").render([{"role": "user", "content": "x" * 4_000_001}])


def test_a_template_serves_many_threads():
    template = ChatTemplate("{% for m in messages %}{{ m.content * 3 }}{% endfor %}")
    results: dict[int, str] = {}

    def render(i: int) -> None:
        for _ in range(50):
            results[i] = template.render([{"role": "user", "content": str(i)}] * 5)

    threads = [threading.Thread(target=render, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: str(i) * 15 for i in range(6)}


def test_a_refusal_leaves_the_template_usable():
    template = ChatTemplate("{{ 'x' * (messages[0].content | int) }}")
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "1000000000"}])
    assert template.render([{"role": "user", "content": "3"}]) == "xxx"
