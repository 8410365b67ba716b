"""The example that extracts data from text files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llguidance", reason="answers of a structure need it; it is not installed")

SCRIPT = Path(__file__).parents[2] / "examples" / "extract.py"
LETTER = "Dear Tom,\ncould you bring two bottles of milk on Friday?\nLove, Anna\n"
INVOICE = {
    "type": "object",
    "properties": {"number": {"type": "string", "pattern": "^[A-Z]-[0-9]{1,4}$"}, "total": {"type": "number"}},
    "required": ["number", "total"],
    "additionalProperties": False,
}


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_line_for_each_file(tmp_path: Path, smollm2: Path) -> None:
    good, bad = tmp_path / "a.txt", tmp_path / "b.txt"
    good.write_text(LETTER, "utf-8")
    bad.write_bytes(b"\xff\xfe\x00")
    done = run("--model", smollm2, good, bad, tmp_path / "none.txt")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["file"] == str(good) and set(found["data"]) == {"sender", "subject", "date", "tone", "asks_for"}
    assert found["data"]["tone"] in ("friendly", "neutral", "angry") and isinstance(found["data"]["asks_for"], list)
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [str(bad), str(tmp_path / "none.txt")]


def test_a_schema_of_ones_own(tmp_path: Path, smollm2: Path) -> None:
    text, schema = tmp_path / "a.txt", tmp_path / "invoice.json"
    text.write_text("Invoice A-17. Please pay 12.50 by Monday.", "utf-8")
    schema.write_text(json.dumps(INVOICE), "utf-8")
    done = run("--model", smollm2, "--schema", schema, text)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["data"]) == {"number", "total"}
    done = run("--model", smollm2, "--schema", schema, "--max-tokens", 2, text)
    assert done.returncode == 1 and done.stderr.startswith(f"{text}: the data has no end within 2 tokens")
    schema.write_text('{"type": "strin"}', "utf-8")
    done = run("--model", smollm2, "--schema", schema, text)
    assert done.returncode == 1 and done.stderr.startswith("extract: ") and done.stderr.count("\n") == 1
