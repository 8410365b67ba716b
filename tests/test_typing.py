"""The public face as a type checker sees it: whole, exact, and without `Any` for names that do not exist."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm.params import ChatParams

ROOT = Path(__file__).parents[1]

# Lines that are wrong carry an "ignore" of the error that is expected: in strict mode, one that is not needed is an
# error itself. So both what must pass and what must not are checked in one run.
SCRIPT = """
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import edgellm


def own_step(ids: NDArray[np.int64], logits: NDArray[Any], context: NDArray[np.int64]) -> None:
    logits[ids == context[-1]] = -np.inf


def right(path: Path, settings: dict[str, Any]) -> None:
    with edgellm.load(path, n_ctx=512, n_threads=2, n_batch=64, kv_type="q8_0", activations="f32") as model:
        assert_type(model, edgellm.Model)
        assert_type(model.tokenize("a", add_special=True), list[int])
        assert_type(model.detokenize(np.array([1, 2])), str)
        assert_type(model.logits([1, 2]), NDArray[np.float32])
        assert_type(model.logits_in_pieces((1, 2), first=1), Iterator[NDArray[np.float32]])
        assert_type(model.run([1, 2], taps=["hidden"])["hidden"], NDArray[np.float32])
        assert_type(model.values["logits"], int)
        with model.square_sums() as sums:
            assert_type(sums["blk.0.attn_q.weight"], NDArray[np.float64])
        assert_type(model.metadata, Mapping[str, Any])
        assert_type(model.n_ctx + model.n_vocab + model.n_threads + model.config.n_layers, int)
        answer = model.generate("a", temperature=0.0, top_k=3, top_p=0.9, min_p=0.1, repeat_penalty=1.1,
                                repeat_last_n=9, seed=None, max_tokens=5)
        assert_type(answer, edgellm.Generation)
        for piece in answer:
            assert_type(piece, str)
        assert_type(answer.finish_reason, str | None)
        assert_type(answer.token_ids, list[int])
        assert_type(answer.stats.tokens_per_second, float)
        assert_type(answer.stop_string, str | None)
        assert_type(answer.logprobs[0].top, list[tuple[int, float]])
        answers = model.generate("a", n=3, stop=["b"], logit_bias={5: -1.0}, samplers=["top_k", own_step], logprobs=5)
        assert_type(answers, list[edgellm.Generation])
        assert_type(model.chat([{"role": "user"}], n=2, dry_multiplier=0.8), list[edgellm.Generation])
        messages = [{"role": "user", "content": "Hi"}]
        "".join(model.chat(messages, {"enable_thinking": False}, seed=1))
        model.generate([1, 2], **settings)
        assert_type(answer.text, str)
        with answer.on_prompt(lambda done, total: print(done, total)) as same:
            assert_type(same, edgellm.Generation)
        assert_type(model.chat(messages, tools=[own_step], think=False, response_format=dict).tool_calls[0].name, str)
        assert_type(model.openai_chat(messages, temperature=0.5, logit_bias={"5": 1.0}), dict[str, Any])
        assert_type(model.openai_chat(messages, stream=True, n=2), Iterator[dict[str, Any]])

    async def from_asyncio() -> None:
        async for piece in model.chat_async(messages, top_k=3):
            assert_type(piece, str)
        assert_type(await model.generate_async("a", seed=1), edgellm.Generation)

    assert_type(edgellm.load_tokenizer("name").encode("a"), list[int])
    assert_type(edgellm.SamplingParams(seed=3).temperature, float)
    assert_type(edgellm.pull("smollm2-135m"), Path)
    assert_type(edgellm.convert_checkpoint(path, "b", "F16"), list[str])
    assert_type(edgellm.UsageError("a").parameter, str | None)
    edgellm.quantize_file("a", path, "Q4_K_M")
    with edgellm.load(path) as model:
        adapter = edgellm.train(model, ["a.jsonl", path], edgellm.LoraConfig(rank=4), edgellm.TrainConfig(steps=3),
                                examples=edgellm.DataConfig(skip_bad=True), output="a", callback=lambda step: step.loss)
        assert_type(adapter.method, str)
    edgellm.export_checkpoint("a", path)


def wrong(model: edgellm.Model) -> None:
    edgellm.load("a", n_ctx="512")  # type: ignore[arg-type]
    edgellm.load("a", context=512)  # type: ignore[call-arg]
    edgellm.load(5)  # type: ignore[arg-type]
    edgellm.lod("a")  # type: ignore[attr-defined]
    model.generate("a", temprature=0.5)  # type: ignore[call-overload]
    model.generate("a", temperature="hot")  # type: ignore[call-overload]
    model.generate("a", max_tokens=1.5)  # type: ignore[call-overload]
    model.generate("a", n="3")  # type: ignore[call-overload]
    model.generate(None)  # type: ignore[call-overload]
    model.chat("a")  # type: ignore[arg-type]
    model.chat([{"role": "user"}], top_k=None)  # type: ignore[call-overload]
    model.chat([{"role": "user"}], topk=3)  # type: ignore[call-overload]
    model.generate("a", stop=5)  # type: ignore[call-overload]
    model.tokenize(None)  # type: ignore[arg-type]
    model.logits("a")  # type: ignore[arg-type]
    model.no_such  # type: ignore[attr-defined]
    model.generate("a").no_such  # type: ignore[attr-defined]
    model.openai_chat([{"role": "user"}], top_k=3)  # type: ignore[call-overload]
    model.chat_async([{"role": "user"}], n=3)  # type: ignore[call-arg]
    edgellm.SamplingParams(top_k="3")  # type: ignore[arg-type]
    edgellm.SamplingParams(topk=3)  # type: ignore[call-arg]
    edgellm.train("a", "b")  # type: ignore[arg-type]
    edgellm.LoraConfig(rnk=3)  # type: ignore[call-arg]
"""


def test_strict_types_of_a_script_and_of_the_examples(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is what checks types; it is not installed")
    (tmp_path / "script.py").write_text(SCRIPT)
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, tmp_path)
    scripts = sorted(path.name for path in tmp_path.glob("*.py"))
    assert len(scripts) > 3
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", tmp_path / "cache", *scripts],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    ours = [line for line in done.stdout.splitlines() if line.startswith(tuple(scripts))]
    assert ours == []
    assert "no issues found" in done.stdout or done.returncode == 1  # 2: mypy itself could not work


def public_functions() -> Iterator[tuple[str, Any]]:
    """All functions and methods that a person may call."""
    for name in edgellm.__all__:
        value = getattr(edgellm, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for method_name, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(function) and (not method_name.startswith("_") or method_name == "__init__"):
                    yield f"{name}.{method_name}", function


def test_every_public_function_is_annotated() -> None:
    lacking = []
    for name, function in public_functions():
        signature = inspect.signature(function)
        parameters = [parameter for key, parameter in signature.parameters.items() if key not in ("self", "cls")]
        bare = [parameter.name for parameter in parameters if parameter.annotation is parameter.empty]
        if bare or signature.return_annotation is signature.empty:
            lacking.append((name, bare))
    assert lacking == []


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_keywords_of_an_answer_are_those_of_sampling_params(name: str) -> None:
    """The same names and types in the same order, and each default stands in `SamplingParams` alone."""
    parameters = inspect.signature(getattr(edgellm.Model, name)).parameters.values()
    keywords = [(p.name, p.annotation, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert keywords[:2] == [("n", "int | None", None), ("adapters", "AdapterScales | None", None)]
    kinds = (ChatParams, edgellm.SamplingParams) if name == "chat" else (edgellm.SamplingParams,)
    assert keywords[2:] == [(field.name, field.type, field.default) for kind in kinds for field in fields(kind)]


def test_keywords_for_type_checkers_are_those_of_sampling_params() -> None:
    tree = ast.parse((ROOT / "edgellm" / "params.py").read_text("utf-8"))
    known = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "SamplingKeywords")
    keywords = [(ast.unparse(n.target), ast.unparse(n.annotation)) for n in known.body if isinstance(n, ast.AnnAssign)]
    assert keywords == [(field.name, field.type) for field in fields(edgellm.SamplingParams)]


def test_keywords_of_load_are_those_of_runtime_config() -> None:
    parameters = inspect.signature(edgellm.load).parameters.values()
    keywords = [(p.name, p.annotation, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY]
    expected = [(field.name, field.type, field.default) for field in fields(edgellm.RuntimeConfig)]
    assert [keyword for keyword in keywords if keyword[0] != "progress"] == expected
