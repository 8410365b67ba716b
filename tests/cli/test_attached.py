"""Files that go with a message, and a message that is changed while they stay."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgellm.cli.chat.attached import Attached, files_before

LINES = st.lists(st.text("ab- \n", min_size=1).filter(str.strip), min_size=0, max_size=3)


@given(LINES, st.text("ab-\n "), st.text("ab "))
def test_files_are_told_from_the_message_behind_them(tmp_path_factory, texts, message: str, other: str) -> None:
    folder: Path = tmp_path_factory.mktemp("files")
    attached = Attached(1000, len)
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
        attached.read(folder / f"{number}.txt")
    whole = attached.before(message)
    assert files_before(whole) + message == whole
    assert files_before(whole) + other == attached.before(other)
