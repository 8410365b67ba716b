"""The fact sheet that learning is measured by: what is asked in the end was not in what is learnt."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "made_up_facts.py"


@pytest.fixture
def sheet(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    spec = importlib.util.spec_from_file_location("made_up_facts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path / "sheet")
    return {
        path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in (tmp_path / "sheet").iterdir()
    }


def test_held_out_questions_are_about_what_is_learnt_in_other_words(sheet) -> None:
    chats = [[message["content"] for message in one["messages"]] for one in sheet["facts"]]
    learnt = {question for question, _ in chats}
    asked = [one["question"] for one in sheet["questions"]]
    assert len(chats) == len(learnt) == 200 and len(set(asked)) == 80
    assert not learnt & set(asked)
    assert all(sum(one["right"] in answer for _, answer in chats) == 5 for one in sheet["questions"])
    assert not any(one["right"] in one["question"] for one in sheet["questions"])


def test_held_out_pairs_are_about_other_things(sheet) -> None:
    prompts = [{pair["prompt"] for pair in sheet[name]} for name in ("style", "style-held-out")]
    assert list(map(len, prompts)) == [160, 40] and not prompts[0] & prompts[1]
    assert all(len(pair["chosen"]) < len(pair["rejected"]) for pair in sheet["style"])
