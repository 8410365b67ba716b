"""Extract structured data from text files: one line of JSON for each, of exactly the form that a dataclass gives.

    python examples/extract.py letters/*.txt > letters.jsonl
    python examples/extract.py --model gemma3-270m --schema invoice.json invoices/*.txt

The model cannot write anything else: at every step, only tokens that go on with valid JSON may come. What is in the
JSON is the model's reading of the text, and a small model misreads; look at some before you rely on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import edgellm

ASK = "Extract the data from this text. Use only what it says.\n\n{text}"


@dataclass
class Message:
    """What is extracted unless --schema gives something else."""

    sender: str | None
    subject: str
    date: str | None
    tone: Literal["friendly", "neutral", "angry"]
    asks_for: list[str]


class CutOff(Exception):
    """The data did not come to its end."""


def extracted(model: edgellm.Model, text: str, schema: Any, max_tokens: int) -> Any:
    """The data of a text. Raises ContextOverflowError for a text that is too long, CutOff for data that is."""
    messages = [{"role": "user", "content": ASK.format(text=text)}]
    with model.chat(messages, response_format=schema, temperature=0.0, max_tokens=max_tokens) as answer:
        found = answer.text
    if answer.finish_reason != "stop":
        raise CutOff(f"the data has no end within {len(answer.token_ids)} tokens; a larger --max-tokens may help")
    return json.loads(found)


def read_schema(path: Path | None) -> Any:
    return Message if path is None else json.loads(path.read_text("utf-8"))


def main(words: list[str] | None = None) -> int:
    """The exit status: 1 when a file could not be read or extracted; the others are written all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--model", default="smollm2-135m", help="a name or a GGUF file  [default: %(default)s]")
    parser.add_argument("--schema", type=Path, help="a JSON schema of the data")
    parser.add_argument("--max-tokens", type=int, default=400, help="of the JSON of a file  [default: %(default)s]")
    given = parser.parse_args(words)
    status = 0
    try:
        schema = read_schema(given.schema)
        with edgellm.load(given.model) as model:
            for path in given.files:
                try:
                    data = extracted(model, path.read_text("utf-8"), schema, given.max_tokens)
                except (OSError, UnicodeDecodeError, CutOff, edgellm.ContextOverflowError) as problem:
                    print(f"{path}: {problem}", file=sys.stderr)
                    status = 1
                    continue
                print(json.dumps({"file": str(path), "data": data}, ensure_ascii=False), flush=True)
    except (OSError, ValueError, edgellm.EdgellmError) as problem:
        print(f"extract: {problem}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
