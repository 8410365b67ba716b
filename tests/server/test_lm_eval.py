"""lm-eval against the server, where its command is installed, in whatever environment: it asks what the engine says.

Its tokens come from the server too, so nothing is fetched from anywhere.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm

LM_EVAL = shutil.which("lm_eval")
QUESTIONS: list[dict[str, Any]] = [
    {"question": "The capital of France is", "choices": ["Paris", "Rome", "a fruit"], "answer": 0},
    {"question": "Water freezes at zero degrees", "choices": ["banana", "Celsius"], "answer": 1},
    {"question": "Two plus two is", "choices": ["green", "four \u00e9"], "answer": 1},
]
TEXT = "Der Rhein ist ein Fluss. It rises in the Alps, and \u0430 little later it is a lake.\n\nThen it turns north."
CHOOSING = """task: questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""


def test_a_client_learns_of_the_tokenizer(smol) -> None:
    found = smol.get("/tokenizer_info?model=smollm2-135m").json()
    assert (found["bos_token"], found["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>" in found["chat_template"] and found["model_max_length"] == 8192
    assert smol.get("/tokenizer_info?model=another").status_code == 404


@pytest.mark.skipif(LM_EVAL is None, reason="lm-eval is not installed")
def test_lm_eval_finds_what_the_engine_says(smol, smollm2: Path, tmp_path: Path) -> None:
    for name, task, rows in (("questions", CHOOSING, QUESTIONS), ("texts", ROLLING, [{"text": TEXT}])):
        path = tmp_path / f"{name}.json"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(task.format(path=path), encoding="utf-8")
    asked = f"model=smollm2-135m,base_url={smol.url}/v1/completions,tokenizer_backend=remote"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [str(LM_EVAL), "run", "--model", "local-completions", "--model_args", asked, "--include_path", str(tmp_path),
         "--tasks", "questions,texts", "--output_path", str(tmp_path / "out"), "--log_samples"],
        cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    with edgellm.load(smollm2, n_threads=2) as model:
        end = model.tokenizer.eos_id
        for row, question in zip(_samples(tmp_path, "questions"), QUESTIONS, strict=True):
            expected = []
            for choice in question["choices"]:
                before = model.tokenize(question["question"])
                logprobs = _logprobs(model, model.tokenize(f"{question['question']} {choice}"))
                expected.append(sum(logprobs[len(before) - 1 :]))
            found = [float(one[0]) for one in row["filtered_resps"]]
            assert found == pytest.approx(expected, abs=2e-3)
            assert row["acc"] == float(np.argmax(expected) == question["answer"])
        (row,) = _samples(tmp_path, "texts")
        nats = -sum(_logprobs(model, [end, *model.tokenize(TEXT)]))
        total, n_bytes = row["byte_perplexity"]
        assert (-total, n_bytes) == (pytest.approx(nats, abs=2e-2), len(TEXT.encode()))
        assert math.exp(nats / n_bytes) > 1


def _samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


def _logprobs(model: edgellm.Model, ids: list[int]) -> list[float]:
    """Of each token but the first."""
    rows = np.asarray(model.logits(ids[:-1]), np.float64)
    norms = np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1)) + rows.max(axis=1)
    return [float(row[token] - norm) for row, token, norm in zip(rows, ids[1:], norms, strict=True)]
