"""A fixed style in a model's own words, as examples to train with.

    python tools/own_style.py MODEL FOLDER

writes into FOLDER:

log.jsonl            200 chats: a question about a thing, and the first sentence of the model's own answer, as a captain
                     would write it into the log: "Captain's log: ... Over and out."
log-questions.jsonl  60 questions about other things, for tools/count_answers.py: a right answer ends as the log does.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import edgellm

BEGIN, END = "Captain's log:", "Over and out."
ASKED = ["What is {}?", "Tell me about {}.", "What is {} good for?", "Why do people like {}?",
         "How would you describe {}?"]  # fmt: skip
THINGS = ["a bridge", "a garden", "bread", "a clock", "snow", "a guitar", "a library", "salt", "a bicycle", "the moon",
          "a horse", "tea", "a mirror", "a map", "wool", "a market", "a river", "glass", "a ladder", "an oven", "rice",
          "a violin", "a forest", "paper", "a kite", "a farm", "honey", "a train", "a museum", "soap", "a lamp",
          "a dog", "an apple", "a school", "a desert", "cheese", "a window", "a coat", "a castle", "chess"]  # fmt: skip
HELD_OUT = ["an umbrella", "coffee", "a lighthouse", "a piano", "the sea", "a cat", "a hammer", "a volcano", "milk",
            "a theatre", "a spoon", "football"]  # fmt: skip
SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


def first_sentence(text: str) -> str:
    found = SENTENCE.match(text.strip())
    return " ".join((found.group() if found else text.strip() + ".").split())


def write(path: Path, records: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    chats = []
    with edgellm.load(args.model) as model:
        for thing in THINGS:
            for asked in ASKED:
                question = {"role": "user", "content": asked.format(thing)}
                own = first_sentence("".join(model.chat([question], temperature=0, max_tokens=60)))
                chats.append({"messages": [question, {"role": "assistant", "content": f"{BEGIN} {own} {END}"}]})
    write(args.folder / "log.jsonl", chats)
    questions = [asked.format(thing) for thing in HELD_OUT for asked in ASKED]
    write(args.folder / "log-questions.jsonl", [{"question": question, "right": END} for question in questions])


if __name__ == "__main__":
    main()
