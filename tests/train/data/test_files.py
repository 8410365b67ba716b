"""Data files of every format, and files that are damaged, of another format or hostile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgellm.errors import FileProblem, FormatError
from edgellm.train.data.files import read_records

ROWS = [{"text": "one"}, {"text": "zwei é 🦙"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path, raw: bytes | str) -> list:
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return list(read_records(path))


def values(path: Path, raw: bytes | str) -> list:
    records = read(path, raw)
    assert all(record.problem is None for record in records)
    return [record.values for record in records]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES.rstrip("\n")),
        ("a.jsonl", "\ufeff" + LINES.replace("\n", "\r\n\r\n  \r\n")),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json", "\ufeff" + json.dumps({"version": 1, "data": ROWS})),
        ("a.json", LINES),
        ("a.JSONL", LINES),
        ("a.csv", "text\none\nzwei é 🦙\n"),
        ("a.csv", '\ufefftext\r\n"one"\r\n\r\n"zwei é 🦙"\r\n'),
        ("a.tsv", "text\none\nzwei é 🦙"),
    ],
)
def test_formats(name, raw, tmp_path):
    assert values(tmp_path / name, raw) == ROWS


def test_places_are_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    assert [record.place for record in read(path, "\n" + LINES)] == [f"{path}, line 2", f"{path}, line 3"]
    path = tmp_path / "a.csv"
    places = [record.place for record in read(path, 'text,b\n"one\ntwo",1\nx,2\n')]
    assert places == [f"{path}, line 2", f"{path}, line 4"]
    path = tmp_path / "a.json"
    places = [record.place for record in read(path, json.dumps({"data": ROWS}))]
    assert places == [f"{path}, entry 1 of 'data'", f"{path}, entry 2 of 'data'"]


def test_a_single_example_in_a_json_file(tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    assert values(tmp_path / "a.json", json.dumps(chat, indent=1)) == [chat]
    shared = {"conversations": [{"from": "human", "value": "Hi"}], "tools": [{"name": "f"}]}
    assert values(tmp_path / "b.json", json.dumps(shared)) == [shared]


@pytest.mark.parametrize("name", ["a.txt", "README.md", "a.py", "nothing"])
def test_plain_text(name, tmp_path):
    (record,) = read(tmp_path / name, "\ufeffone\r\n\rtwo\n")
    assert (record.values, record.is_file, record.place) == ({"text": "one\n\ntwo\n"}, True, str(tmp_path / name))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"messages": [{"role": "user", "content": "Hi", "name": None}], "n": 1},
        {"messages": [{"role": "user", "content": "Yo", "name": "x"}], "n": 2},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(read_records(tmp_path / "a.parquet"))
    assert found[0].values == {"messages": [{"role": "user", "content": "Hi"}], "n": 1}
    assert found[1].values == rows[1]
    assert found[1].place.endswith("a.parquet, row 2")
    with pytest.raises(FormatError, match=r"cannot be read as Parquet after row 0"):
        read(tmp_path / "b.parquet", b"PAR1" + bytes(100) + b"PAR1")


def test_parquet_with_two_columns_of_a_name(tmp_path):
    """A row would have the last of them alone."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=r"a\.parquet: two columns are called 'text'$"):
        list(read_records(tmp_path / "a.parquet"))


def test_messages_in_a_csv_file(tmp_path):
    (record,) = read(tmp_path / "a.csv", "prompt,completion\na,b\n")
    assert record.is_row


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(FileProblem, match="pip install pyarrow"):
        read(tmp_path / "a.parquet", b"PAR1")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[1]", "is a list; expected an object"),
        (b'"text"', "is a text; expected an object"),
        (b"null", "is null"),
        (b'{"text": "a"', "malformed"),
        (b"{'text': 'a'}", "malformed"),
        (b'{"text": "a"} x', "malformed"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "a\0"}', "holds a NUL byte at column 12"),
        (b'{"text": NaN}', "NaN"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "digits"),
        (b'{"text": "a", "text": "b"}', "'text' appears twice"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"text": ' + b"[" * 100 + b"]" * 100 + b"}", "nests lists and objects more than 100 deep"),
    ],
)
def test_a_bad_line_is_that_lines_problem(line, problem, tmp_path):
    path = tmp_path / "a.jsonl"
    before, bad, after = read(path, b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    assert bad.place == f"{path}, line 2" and problem in bad.problem
    assert (before.values, after.values, before.problem, after.problem) == (
        {"text": "one"},
        {"text": "two"},
        None,
        None,
    )


def test_a_line_without_end_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.train.data.files.json_lines.LONGEST_LINE", 1 << 20)
    raw = b'{"text": "' + b"x" * (3 << 20) + b'"}\n{"text": "two"}'
    bad, after = read(tmp_path / "a.jsonl", raw)
    assert bad.problem == "is longer than 1 MiB" and after.values == {"text": "two"}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"text,b\none\n", "has 1 fields; the header has 2"),
        (b"text,b\na,b,c\n", "has 3 fields"),
        (b"text,b\n\xff,b\n", "is not UTF-8: byte 0xff"),
        (b"text,b\na\0,b\n", "holds a NUL byte"),
    ],
)
def test_a_bad_row_is_that_rows_problem(raw, problem, tmp_path):
    path = tmp_path / "a.csv"
    bad, after = read(path, raw + b"one,two\n")
    assert bad.place == f"{path}, line 2" and problem in bad.problem
    assert after.values == {"text": "one", "b": "two"}


@pytest.mark.parametrize(
    ("name", "raw", "problem"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b"\xef\xbb\xbf \r\n", "is empty"),
        ("a.csv", b"\n\n", "is empty; expected a header"),
        ("a.csv", b",,\na,b,c\n", "line 1: no column has a name"),
        ("a.csv", b"\ntext;note;text\na;b;c\n", "line 2: two columns are called 'text'"),
        ("a.csv", b"text,text\na,b\n", "line 1: two columns are called 'text'"),
        ("a.csv", b'text\n"a\nb\n', "line 2: unexpected end of data"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is UTF-16"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text: byte 0xe9 at 3"),
        ("a.txt", b"a\0b", "NUL byte at offset 1"),
        ("a.jsonl", b"\x1f\x8b\x08\0more", "is packed (gzip); unpack it first"),
        ("a.json", b"PK\x03\x04more", "is packed (zip)"),
        ("a.json", b'{"a": [', "malformed"),
        ("a.json", b'[{"text": "a"},]', "malformed"),
        ("a.json", b"7", "its JSON is a int; expected a list of objects"),
        ("a.json", json.dumps({"train": ROWS, "test": ROWS}).encode(), "holds 2 lists ('train', 'test')"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.parquet", b"no such thing", "is no Parquet file"),
        ("a.jsonl", b"PAR1....", "its name must end in .parquet"),
    ],
)
def test_a_file_that_is_none(name, raw, problem, tmp_path):
    with pytest.raises(FormatError) as raised:
        read(tmp_path / name, raw)
    assert problem in str(raised.value) and str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_folder_and_nothing(tmp_path):
    with pytest.raises(FormatError, match="is a folder"):
        list(read_records(tmp_path))
    with pytest.raises(FormatError, match="is no regular file"):
        list(read_records(Path(os.devnull)))
    with pytest.raises(FileNotFoundError):
        list(read_records(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.csv", "prompt;completion"),
        ("a.csv", '\ufeff"prompt";"completion"'),
        ("a.csv", "prompt\tcompletion"),
        ("a.csv", "\ufeffsep=;\r\nprompt;completion"),
        ("a.csv", "\n\nprompt;completion;"),
        ("a.tsv", "prompt,completion"),
        ("a.tsv", "prompt;completion"),
    ],
)
def test_other_separators_are_seen_by_the_header(tmp_path: Path, name: str, header: str) -> None:
    separator = next(mark for mark in ";\t," if mark in header)
    first, second = read(tmp_path / name, f'{header}\n"a, b; c\td"{separator}e\n\nf{separator}g\n')
    assert first.values == {"prompt": "a, b; c\td", "completion": "e"} and first.problem is None
    assert second.values == {"prompt": "f", "completion": "g"}
    assert second.place.endswith(f"line {header.count(chr(10)) + 4}")


def test_what_stands_between_fields_may_be_in_a_single_one(tmp_path: Path) -> None:
    (record,) = read(tmp_path / "a.csv", "text\none; two\n")
    assert record.values == {"text": "one; two"}


def test_columns_without_a_name(tmp_path: Path) -> None:
    """As where every line, or the header alone, ends in a comma; and as tables with an index are written."""
    for text in ("prompt,completion,\na,b,\n", "prompt,completion,,\na,b\n", "prompt,completion, \na,b,\n"):
        (record,) = read(tmp_path / "a.csv", text)
        assert record.values == {"prompt": "a", "completion": "b"} and record.problem is None
    (record,) = read(tmp_path / "a.csv", ",text,\n0,a,x\n")
    assert record.values == {"text": "a", "column 1 without a name": "0", "column 3 without a name": "x"}
    (record,) = read(tmp_path / "a.csv", ",text\n0\n")
    assert record.problem == "has 1 fields; the header has 2"
