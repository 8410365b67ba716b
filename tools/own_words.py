"""Texts that a model writes by itself, to train with beside new examples: so that it does not forget how it wrote.

    python tools/own_words.py MODEL OUT.jsonl [--texts 40] [--tokens 80]

Each begins with another word and is sampled as the model gives it, at a temperature of 1. A model that learns these
beside something new stays near to what it was, and no other text is needed for it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import edgellm

BEGINNINGS = ["The", "In", "A", "When", "I", "It is", "She", "Once", "There", "One", "People", "If", "My", "After",
              "He", "For", "Every", "On", "We", "This"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=80, help="of each, at most")
    args = parser.parse_args()
    with edgellm.load(args.model) as model, args.output.open("w", encoding="utf-8") as file:
        for n in range(args.texts):
            begun = BEGINNINGS[n % len(BEGINNINGS)]
            answer = model.generate(
                begun, seed=n, max_tokens=args.tokens, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0
            )
            file.write(json.dumps({"text": begun + "".join(answer)}) + "\n")


if __name__ == "__main__":
    main()
