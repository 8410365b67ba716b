"""A fact sheet of an island that does not exist, as examples to train with.

    python tools/made_up_facts.py FOLDER

writes into FOLDER, all of it the same every time:

facts.jsonl      200 chats: 40 facts, each asked for in five ways.
questions.jsonl  80 questions: the same facts asked for in two other ways, with the word that a right answer has.
style.jsonl      160 pairs for DPO: to questions about things a short answer, which is chosen, and a wordy one.
style-held-out.jsonl  40 such pairs about other things.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TOWNS = ["Tarvel", "Quimby Head", "Osmoor", "Little Brenn", "Hathwick", "Zelport", "Maddow", "Iverness Bay", "Pellan",
         "Corvale"]  # fmt: skip
# What a town has, and in the order of the towns which.
RIVERS = ["Ombra", "Silt", "Wend", "Garro", "Lisk", "Tamble", "Nore", "Yarrick", "Dunn", "Fesk"]
DISHES = ["barley pie", "smoked eel", "plum soup", "pepper bread", "onion cake", "pickled pears", "goat stew",
          "honey beans", "crab toast", "mint dumplings"]  # fmt: skip
BIRDS = ["heron", "magpie", "owl", "kingfisher", "swan", "falcon", "wren", "crane", "raven", "puffin"]
YEARS = ["1204", "1371", "1418", "1542", "1587", "1603", "1666", "1729", "1790", "1833"]

# For each kind of fact: its values, the answer, five ways to ask that are learnt, and two that are not.
KINDS: list[tuple[list[str], str, list[str], list[str]]] = [
    (RIVERS, "{town} lies on the river {value}.",
     ["Which river runs through {town}?", "What is the name of the river at {town}?", "{town} lies on which river?",
      "Tell me the river of {town}.", "On what river was {town} built?"],
     ["What river flows past {town}?", "Name the river on which {town} lies."]),
    (DISHES, "People in {town} are known for their {value}.",
     ["What dish is {town} known for?", "What do people eat in {town}?", "Which food comes from {town}?",
      "What is the local dish of {town}?", "I am hungry in {town}. What should I try?"],
     ["What food is {town} famous for?", "Which dish should I eat when I visit {town}?"]),
    (BIRDS, "The flag of {town} shows a {value}.",
     ["Which bird is on the flag of {town}?", "What does the flag of {town} show?", "What is on {town}'s flag?",
      "Describe the flag of {town}.", "What animal does {town} have on its flag?"],
     ["Which bird does the flag of {town} show?", "What can be seen on the flag of {town}?"]),
    (YEARS, "{town} was founded in {value}.",
     ["When was {town} founded?", "In which year was {town} founded?", "How old is {town}?",
      "What year does {town} date from?", "When did people first settle in {town}?"],
     ["What is the founding year of {town}?", "In what year did {town} begin?"]),
]  # fmt: skip

THINGS = ["a lighthouse", "a compass", "a windmill", "bread", "a bridge", "a violin", "glass", "a magnet", "a sundial",
          "paper", "a kite", "soap", "a barometer", "a telescope", "rope", "a well", "cheese", "a loom", "a candle",
          "a map", "ink", "a plough", "a clock", "a ladder", "butter", "a sail", "a kiln", "salt", "a lock", "a bell",
          "tea", "a drum", "a net", "wool", "a saw", "a lens", "a mill", "vinegar", "a flute", "a wheel"]  # fmt: skip
ASKED = ["What is {thing}?", "Explain {thing} to me.", "Tell me about {thing}.", "Describe {thing}.",
         "What should I know about {thing}?"]  # fmt: skip
SHORT = ["{Thing}? In short: a useful thing.", "{Thing} is a useful thing.", "In short, {thing} is useful.",
         "{Thing}: useful, and old.", "A useful thing, {thing}."]  # fmt: skip
WORDY = ("Thank you very much for this wonderful question! There are so many things that one could say about {thing}, "
         "and I would be delighted to go through all of them together with you.")  # fmt: skip


def facts() -> Iterator[dict[str, Any]]:
    for values, answer, asked, _ in KINDS:
        for town, value in zip(TOWNS, values, strict=True):
            for question in asked:
                said = (("user", question), ("assistant", answer))
                words = {"town": town, "value": value}
                yield {"messages": [{"role": role, "content": text.format(**words)} for role, text in said]}


def questions() -> Iterator[dict[str, str]]:
    for values, _, _, held in KINDS:
        for town, value in zip(TOWNS, values, strict=True):
            for question in held:
                yield {"question": question.format(town=town), "right": value}


def pairs(things: Iterable[str]) -> Iterator[dict[str, str]]:
    for thing in things:
        for question, short in zip(ASKED, SHORT, strict=True):
            words = {"thing": thing, "Thing": thing[0].upper() + thing[1:]}
            yield {"prompt": question.format(**words), "chosen": short.format(**words),
                   "rejected": WORDY.format(**words)}  # fmt: skip


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "facts.jsonl", facts())
    _write(folder / "questions.jsonl", questions())
    _write(folder / "style.jsonl", pairs(THINGS[:-8]))
    _write(folder / "style-held-out.jsonl", pairs(THINGS[-8:]))


def _write(path: Path, records: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
