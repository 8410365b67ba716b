"""The pictures of the documentation: drawn from the programs themselves, and no label lies over another."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import draw_quantization

    return draw_quantization


def test_no_label_of_the_figure_lies_over_another(drawing: Any) -> None:
    boxes = []
    for x, y, text in re.findall(r'<text class="small" x="([\d.]+)" y="([\d.]+)">(\w+)</text>',
                                 (DOCS / "quantization-loss.svg").read_text(encoding="utf-8")):  # fmt: skip
        if re.search("[A-Z]", text):
            boxes.append(drawing.box_of(float(x), float(y), drawing.LETTER * len(text)))
    assert len(boxes) > 10
    assert [pair for pair in combinations(boxes, 2) if drawing._overlap(*pair)] == []
    assert max(box[2] for box in boxes) <= drawing.WIDTH


def test_labels_without_room_are_an_error(drawing: Any) -> None:
    with pytest.raises(ValueError, match="no room"):
        drawing.labels([("Q4_K", 4.5, 1.0)] * 40, [(100.0, 100.0)] * 40)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_a_picture_is_what_the_terminal_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pexpect")
    pytest.importorskip("pyte")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import record_chat
    from terminal import Terminal

    code = r"print('\x1b[1mbold\x1b[0m and \x1b[32mgreen <&>\x1b[0m', end=' \n>>> ', flush=True); input()"
    terminal = Terminal([sys.executable, "-c", code], columns=40, lines=4)
    terminal.prompt()
    drawn = record_chat.svg(terminal, record_chat.Picture([], columns=40), "$ program")
    terminal.kill()
    texts = {text.text: text.attrib for text in ElementTree.fromstring(drawn) if text.tag.endswith("text")}
    assert list(texts) == ["$ program", "bold", "and", "green <&>", ">>>"]
    assert "bold" in texts["bold"]["style"] and texts["green <&>"]["fill"] == record_chat.DARK["green"]


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed_and_need_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
