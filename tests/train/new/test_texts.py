"""Files as documents in pieces, cut only where no tokenizer joins anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import FileProblem, FormatError
from edgellm.text.pretokenizers import PRETOKENIZERS
from edgellm.train.new import texts
from edgellm.train.new.texts import TextFiles
from edgellm.train.new.vocabulary import END, RULES


def documents(files: TextFiles) -> list[str]:
    found, unfinished = [], ""
    for piece, ends in files.pieces():
        unfinished += piece
        if ends:
            found.append(unfinished)
            unfinished = ""
    assert not unfinished
    return found


def saved(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_a_plain_text_is_one_document(tmp_path: Path) -> None:
    text = "\n\nAs it is,\r\nwith every  space.\n\n"
    assert documents(TextFiles([saved(tmp_path / "a.txt", text)], END)) == [text]


def test_the_separator_parts_documents(tmp_path: Path) -> None:
    text = f"one\n{END}\ntwo\n\n{END}{END}\n\n{END}\nthree {END}four\n"
    assert documents(TextFiles([saved(tmp_path / "a.txt", text)], END)) == ["one", "two", "three ", "four\n"]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 64])
def test_how_a_file_is_read_changes_nothing(read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"\ufeffün {'wörd ' * 9}\n\n{END}\n漢字🙂 lines\nand lines\n{END}\n" + "x" * 60
    monkeypatch.setattr(texts, "READ_BYTES", read_bytes)
    monkeypatch.setattr(texts, "PIECE_CHARS", 16)
    monkeypatch.setattr(texts, "MOST_CHARS", 32)
    files = TextFiles([saved(tmp_path / "a.txt", text)], END)
    assert documents(files) == ["ün " + "wörd " * 9, "漢字🙂 lines\nand lines", "x" * 60]
    assert len(list(files.pieces())) > 3


@given(st.text("ab1 \n\t.,'é漢\u0301\r\x1c\x85\u3000", min_size=2, max_size=60))
def test_no_rule_joins_across_a_cut(text: str) -> None:
    cut = texts._last_cut(text, len(text) - 1)
    for name in RULES:
        rule = PRETOKENIZERS[name]
        whole = rule.split(rule.normalize(text))
        assert whole == [word for part in (text[:cut], text[cut:]) for word in rule.split(rule.normalize(part))], name


def test_records_are_documents(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("one", "two\nlines", f"holds {END}")]
    path = saved(tmp_path / "a.jsonl", "\n".join(lines))
    assert documents(TextFiles([path], END)) == ["one", "two\nlines", f"holds {END}"]


def test_a_folder_is_its_texts_by_name(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.txt", "a.txt", "c.md", "below/d.TXT"):
        saved(tmp_path / name, name)
    assert documents(TextFiles([tmp_path], END)) == ["a.txt", "b.txt", "below/d.TXT"]


def test_a_sample_is_from_all_over_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "READ_BYTES", 100)
    monkeypatch.setattr(texts, "PIECE_CHARS", 100)
    words = [f"w{n:03}" for n in range(1000)]
    files = TextFiles([saved(tmp_path / "a.txt", " ".join(words))], END)
    assert "".join(files.sample(10**9)).split() == words
    some = "".join(files.sample(1000)).split()
    assert 150 < len(some) < 300
    assert any(word in words[:50] for word in some) and any(word in words[-150:] for word in some)


@pytest.mark.parametrize("read_bytes", [3, 1 << 20])
def test_what_is_not_utf8_is_told_with_its_place(
    read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "READ_BYTES", read_bytes)
    path = tmp_path / "a.txt"
    path.write_bytes("漢字 ok ".encode() + b"\xff\xfe")
    with pytest.raises(FormatError, match=r"a\.txt is not UTF-8 text: byte 0xff at 10; convert it first"):
        list(TextFiles([path], END).pieces())
    path.write_bytes("漢字".encode()[:-1])
    with pytest.raises(FormatError, match="is not UTF-8 text: byte 0xe5 at 3"):
        list(TextFiles([path], END).pieces())


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"nowhere\.txt does not exist; expected a file of text"):
        TextFiles([tmp_path / "nowhere.txt"], END)
    with pytest.raises(FileProblem, match="is a folder without any file of text"):
        TextFiles([tmp_path], END)
    with pytest.raises(FileProblem, match="there is no text in"):
        TextFiles([saved(tmp_path / "empty.txt", "")], END)
    with pytest.raises(FormatError, match="expected text"):
        list(TextFiles([saved(tmp_path / "a.jsonl", '{"prompt": "a", "completion": "b"}')], END).pieces())
