"""Whole files: what is recognised, counted, skipped, and told."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FormatError, TemplateError, UsageError
from edgellm.train.data.config import DataConfig
from edgellm.train.data.dataset import documents_of, read_dataset
from edgellm.train.data.kinds import ALL, PREFERENCES, TO_IMITATE

from .vocabularies import CHATML, marked, model, user, vocabulary

HEAD = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def chat(answer: str, **more) -> dict:
    return {"messages": [user("Hi"), model(answer)], **more}


@pytest.fixture
def lines(tmp_path):
    def write(*rows, name: str = "a.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return path

    return write


def read(*paths, template: str | None = CHATML, wanted=TO_IMITATE, **settings):
    return read_dataset(paths, vocabulary(template), wanted, DataConfig(**settings))


def test_several_files_of_several_kinds(lines, tmp_path):
    first = lines(chat("One", id=7), chat("Two"))
    second = lines({"prompt": "Hi", "completion": "Three"}, name="b.jsonl")
    text = tmp_path / "c.txt"
    text.write_text("the rain in the hills", "utf-8")
    seen = []
    data = read_dataset([first, str(second), text], vocabulary(), ALL, None, seen.append)
    assert [marked(part) for part in data.examples[:3]] == [
        f"{HEAD}[[{answer}<|im_end|>]]" for answer in ("One", "Two", "Three")
    ]
    assert [str(file) for file in data.summary.files] == [
        "messages: chats, 2 examples",
        "prompt, completion: prompts with answers, 1 example",
        "plain text: texts, 1 example",
    ]
    assert data.places == [f"{first}, line 1", f"{first}, line 2", f"{second}, line 1", str(text)]
    assert dict(data.summary.files[0].unused) == {"id": 1}
    assert seen == [1, 2, 3, 4]
    summary = data.summary
    parts = [part for example in data.examples for part in documents_of(example)]
    assert (summary.n_read, summary.n_bad, summary.n_long, summary.n_untrained) == (4, 0, 0, 0)
    assert summary.n_tokens == sum(map(len, parts)) == sum(summary.lengths)
    assert summary.n_targets == sum(part.n_targets for part in parts)


def test_a_text_file_becomes_an_example_for_each_piece(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the rain in the hills, he said; " * 50, "utf-8")
    data = read(path, template=None, max_length=32)
    assert len(data) > 5 and all(len(example) <= 32 for example in data.examples)
    assert set(data.places) == {str(path)} and len(data.places) == len(data)
    assert data.summary.n_long == 0


BAD = [
    ("{oops", "malformed"),
    ({"messages": [user("Hi"), {"content": "x"}]}, "messages[1] has no 'role'"),
    ({"messages": [user("Hi"), model(7)]}, "message 1: 'content' is a int"),  # type: ignore[arg-type]
    ({"text": "x"}, "is an example with text, and those before it have messages"),
    ({"unknown": "x"}, "has the keys unknown; expected"),
]


@pytest.mark.parametrize(("bad", "problem"), BAD)
def test_a_bad_line_is_one_clear_error(bad, problem, lines):
    path = lines(chat("One"), bad, chat("Two"))
    with pytest.raises(FormatError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}, line 2: ") and problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_lines_are_counted_and_left_out(lines):
    path = lines(chat("One"), *(bad for bad, _ in BAD), chat("Two"))
    data = read(path, skip_bad=True)
    assert len(data) == 2
    assert (data.summary.n_read, data.summary.n_bad, len(data.summary.problems)) == (2, 5, 3)
    for number, (text, (_, problem)) in enumerate(zip(data.summary.problems, BAD, strict=False), 2):
        assert text.startswith(f"{path}, line {number}: ") and problem in text


def test_keys_in_messages_that_are_not_used_are_told(lines):
    """Of thoughts, only where the template leaves them out."""
    answer = model("Yo", train=False, reasoning_content="hm", name="me", weight=1)
    path = lines({"messages": [user("Hi"), answer]}, {"messages": [user("Hi", train=None), answer]})
    assert read(path).summary.files[0].unused == {"train in messages": 2, "reasoning_content in messages": 2}
    thinks = "{% if messages[-1].thinking %}{% endif %}" + CHATML
    assert read(path, template=thinks).summary.files[0].unused == {"train in messages": 2}


def test_a_chat_that_the_template_refuses_is_a_bad_line(lines):
    path = lines(chat("One"), {"messages": [user("stop"), model("x")]})
    template = "{% if messages[0].content == 'stop' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    with pytest.raises(TemplateError, match=r"line 2: .*no"):
        read(path, template=template)
    assert read(path, template=template, skip_bad=True).summary.n_bad == 1


def test_long_and_untrained_examples_are_counted(lines):
    path = lines(chat("One"), chat("x" * 300), {"messages": [user("Hi")]}, {"messages": [user("y" * 300), model("x")]})
    n_short = len(read(path).examples[0])
    cut = read(path, max_length=n_short).summary
    assert (cut.n_read, cut.n_long, cut.n_long_dropped, cut.n_untrained) == (4, 2, 0, 2)
    dropped = read(path, max_length=n_short, long="drop")
    assert (dropped.summary.n_long, dropped.summary.n_long_dropped, dropped.summary.n_untrained) == (2, 2, 1)
    assert len(dropped) == 1


@pytest.mark.parametrize(
    ("rows", "settings", "reason"),
    [
        ([{"messages": [user("Hi")]}], {}, "1 have no token that is trained"),
        ([chat("One")], {"max_length": 4}, "1 have no token that is trained; 1 were cut to 4 tokens (max_length)"),
        ([chat("One")], {"max_length": 4, "long": "drop"}, "1 are longer than 4 tokens (max_length)"),
        (["{", "["], {"skip_bad": True}, "2 are bad ("),
        ([" "], {}, "no examples"),
    ],
)
def test_nothing_is_left(rows, settings, reason, lines):
    path = lines(*rows)
    with pytest.raises(UsageError) as raised:
        read(path, **settings)
    assert str(raised.value).startswith(f"there is nothing to learn in {path}: ") and reason in str(raised.value)


def test_no_file_and_no_path():
    with pytest.raises(UsageError, match="data is empty"):
        read()
    with pytest.raises(UsageError, match="data is 7"):
        read(7)


def test_kinds_that_are_not_asked_for(lines):
    with pytest.raises(FormatError, match="line 1: has the keys messages, so it is one of chats; expected chosen"):
        read(lines(chat("One")), wanted=PREFERENCES)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet", "txt"])
@given(raw=st.binary(max_size=80) | st.text(alphabet='{}[]",:\n\r\\ temxsag1\0\ufeff', max_size=80).map(str.encode))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_data_or_one_error(suffix, raw, tmp_path):
    path = tmp_path / f"a.{suffix}"
    for content in (raw, b"PAR1" + raw + b"PAR1", b"text\n" + raw):
        path.write_bytes(content)
        assert all(found != 0 and "\n" not in str(found) for found in map(outcome, (path, path), (True, False)))


def outcome(path, skip_bad: bool) -> int | str:
    """How many examples a file has, or the error."""
    try:
        return len(read(path, skip_bad=skip_bad))
    except EdgellmError as error:
        return str(error)


def test_the_fingerprint_tells_other_data(lines):
    data = read(lines(chat("One"), chat("Two")))
    assert data.fingerprint() == read(lines(chat("One"), chat("Two"))).fingerprint()
    others = [
        read(lines(chat("Two"), chat("One"))),
        read(lines(chat("One"))),
        read(lines(chat("One"), chat("Two")), train_on="all"),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 4
