"""How many questions a model answers right, with an adapter and without.

    python tools/count_answers.py MODEL QUESTIONS.jsonl [--lora FOLDER] [--show 5]

A line of QUESTIONS.jsonl is {"question": ..., "right": ...}; an answer is right that has the word. The likeliest token
is always taken, so the count is the same every time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import edgellm

MOST_TOKENS = 40  # of an answer


def answers(model: edgellm.Model, questions: list[str], adapter: str | None) -> list[str]:
    name = model.load_adapter(adapter) if adapter else None
    adapters = {name: 1.0} if name else {}
    return [
        "".join(model.chat([{"role": "user", "content": q}], temperature=0, max_tokens=MOST_TOKENS, adapters=adapters))
        for q in questions
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--lora", metavar="FOLDER")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="the first N answers, too")
    args = parser.parse_args()
    asked = [json.loads(line) for line in args.questions.read_text("utf-8").splitlines()]
    with edgellm.load(args.model) as model:
        found = answers(model, [one["question"] for one in asked], args.lora)
    for one, answer in list(zip(asked, found, strict=True))[: args.show]:
        print(f"{one['question']}\n    {' '.join(answer.split())}")
    n_right = sum(one["right"].lower() in answer.lower() for one, answer in zip(asked, found, strict=True))
    print(f"{n_right} of {len(asked)} right")


if __name__ == "__main__":
    main()
