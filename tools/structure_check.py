"""How often a model's answers are valid: schemas against prompts, and calls of tools from BFCL.

    python tools/structure_check.py MODEL [--prompts 10] [--bfcl BFCL_v4_simple_python.json] [--calls 100]

Says for each how many were valid, and which part of a token's time the masks took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).parents[1]))

import edgellm
from tests.engine.structure.schemas import SCHEMAS

PROMPTS = [
    "Make up an example of this data.",
    "Describe a small village with its people as JSON.",
    "A cat named Tom, three years old, lives with Anna in Rome.",
    "Give me something about the sea.",
    "List what is needed to bake a cake.",
    "Two travellers, Ben and Eva, met at noon in Oslo.",
    "Think of a machine and its parts.",
    "What could a robot keep in its memory?",
    "Write a record for a library.",
    "Numbers and colours, please.",
]
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


def timed(generation: Any, spent: list[float]) -> str:
    """The text of an answer; the time that its grammar takes is added to `spent`."""
    constraint = generation._answer._constraint
    for name in ("apply", "follow", "forced"):
        setattr(constraint, name, _timed(getattr(constraint, name), spent))
    begun = time.perf_counter()
    text = "".join(generation)
    spent[1] += time.perf_counter() - begun
    return text


def _timed(function: Any, spent: list[float]) -> Any:
    def call(*args: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent[0] += time.perf_counter() - begun

    return call


def schemas(model: edgellm.Model, n_prompts: int) -> None:
    n, valid, spent = 0, 0, [0.0, 0.0]
    for name, schema in SCHEMAS.items():
        for seed, prompt in enumerate(PROMPTS[:n_prompts]):
            messages = [{"role": "user", "content": prompt}]
            answer = model.chat(messages, response_format=schema, seed=seed, temperature=0.7, max_tokens=300)
            text, n = timed(answer, spent), n + 1
            try:
                jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)
                valid += 1
            except (ValueError, jsonschema.ValidationError) as problem:
                print(f"{name}, {prompt!r}: {answer.finish_reason}, {text[:200]!r}: {str(problem)[:100]}")
    print(f"schemas: {valid} of {n} valid; masks took {100 * spent[0] / spent[1]:.1f} % of the time")


def as_schema(given: Any) -> Any:
    """A schema of BFCL as JSON Schema has it."""
    if isinstance(given, list):
        return [as_schema(item) for item in given]
    if not isinstance(given, dict):
        return given
    found = {key: as_schema(value) for key, value in given.items() if key not in ("default", "optional")}
    if isinstance(found.get("type"), str):
        found["type"] = TYPES.get(found["type"], found["type"])
    return found


def calls(model: edgellm.Model, path: Path, most: int) -> None:
    n = valid = 0
    for line in path.read_text("utf-8").splitlines()[:most]:
        case = json.loads(line)
        tools = [{**tool, "name": tool["name"].replace(" ", "_")} for tool in as_schema(case["function"])]
        answer = model.chat(case["question"][0], tools=tools, tool_choice="required", temperature=0.0, max_tokens=400)
        text, n = "".join(answer), n + 1
        wanted = {tool["name"]: tool["parameters"] for tool in tools}
        try:
            for call in answer.tool_calls:
                jsonschema.validate(call.arguments, wanted[call.name])
            valid += bool(answer.tool_calls)
        except jsonschema.ValidationError as problem:
            print(f"{case['id']}: {answer.tool_calls}: {problem.message}")
        if not answer.tool_calls:
            print(f"{case['id']}: {answer.finish_reason}, no call: {text[:200]!r}")
    print(f"calls: {valid} of {n} parse and validate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--bfcl", type=Path)
    parser.add_argument("--calls", type=int, default=100)
    given = parser.parse_args()
    with edgellm.load(given.model) as model:
        if given.prompts:
            schemas(model, given.prompts)
        if given.bfcl:
            calls(model, given.bfcl, given.calls)


if __name__ == "__main__":
    main()
