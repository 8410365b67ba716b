"""edgellm bench: what it asks of the engine, and how it shows the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

import edgellm as package
from edgellm.cli import main
from edgellm.measure import bench
from edgellm.measure import profile as profiling
from edgellm.measure.profile import Profile, Row

from . import fake_engine

RESULT = {
    "model": "chat.gguf",
    "adapters": {},
    "isa": "avx9",
    "n_threads": 1,
    "n_prompt": 32,
    "n_generate": 8,
    "depth": 0,
    "prefill_tokens_per_second": 1234.56,
    "prefill_tokens_per_second_lowest": 1200.0,
    "prefill_tokens_per_second_highest": 1250.0,
    "decode_tokens_per_second": 78.9,
    "decode_tokens_per_second_lowest": 70.0,
    "decode_tokens_per_second_highest": 80.0,
    "read_gigabytes_per_second": 30.25,
    "multiply_gigamacs_per_second": 400.0,
    "prefill_share_of_multiply_limit": 0.671,
    "decode_share_of_read_limit": 0.884,
}
ARGS = ["-p", "32", "-n", "8", "-t", "1", "-r", "5"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asked of the engine, which has its answers ready."""
    calls: list[Any] = []

    def measure(loaded: fake_engine.FakeModel, *args: int) -> dict[str, Any]:
        calls.append((loaded.n_threads, loaded.n_ctx, *args))
        return RESULT | {"depth": args[-1]}

    def profile(loaded: fake_engine.FakeModel, *args: int) -> dict[str, Profile]:
        calls.append(args)
        rows = [Row("linear_decode.Q4_0", 7, 0.004, 0.8, 10**8, 2 * 10**8), Row("add", 2, 0.001, 0.2)]
        return {"prefill": Profile(32, 0.005, 0.0045, rows), "decode": Profile(1, 0.005, 0.0045, rows)}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(profiling, "profile", profile)
    monkeypatch.setattr(package, "load", fake_engine.load, raising=False)
    return calls


def test_a_few_lines(model: str, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", model, *ARGS]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model    chat.gguf, 1 thread, avx9",
        "machine  reads 30.2 GB/s, multiplies 400 GMAC/s (int8)",
        "prefill     32 tokens    1234.6 tok/s  (1200.0 to 1250.0)     67 % of the multiply limit",
        "decode       8 tokens      78.9 tok/s  (70.0 to 80.0)         88 % of the read limit",
    ]
    assert asked == [(1, 32, 32, 8, 5, 0)]


def test_the_context_is_as_long_as_the_depth_needs(
    model: str, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", model, *ARGS, "-d", "100"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "model    chat.gguf, 1 thread, avx9, 100 tokens deep"
    assert main(["bench", model, *ARGS, "--depth", "100", "-c", "500"]) == 0
    assert asked == [(1, 132, 32, 8, 5, 100), (1, 500, 32, 8, 5, 100)]


def test_a_profile(model: str, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", model, *ARGS, "-d", "9", "--profile"]) == 0
    assert asked[1] == (32, 5, 9)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[4:]]
    same = ["add 2 1.000 20.0 %", "together 9 5.000", "an ordinary run, with Python 4.500"]
    assert lines == [
        *("", "prefill, a batch of 32 tokens ops ms share GMAC/s", "linear_decode.Q4_0 7 4.000 80.0 % 50.0", *same),
        *("", "decode, 1 token ops ms share GB/s", "linear_decode.Q4_0 7 4.000 80.0 % 25.0", *same),
    ]


def test_json(model: str, asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", model, *ARGS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == RESULT
    assert main(["bench", model, *ARGS, "--json", "--profile"]) == 0
    profile = json.loads(capsys.readouterr().out)["profile"]
    assert profile["decode"]["seconds_unprofiled"] == 0.0045
    assert profile["prefill"]["rows"][0]["name"] == "linear_decode.Q4_0"
