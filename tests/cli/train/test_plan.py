"""edgellm train plan: what is given, what is measured, what is assumed."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.measure import products
from edgellm.measure.products import Products
from edgellm.train.new.config import NewConfig

ORDINARY = resources.files("edgellm.evaluate") / "ordinary.txt"


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "measure_products", lambda n_threads: Products(2e11, n_threads or 2, "isa"))


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["train", "plan", *words]) == 0
    return capsys.readouterr().out


def test_a_plan_shows_what_is_measured_and_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "--hours", "2")
    assert "machine         200 GFLOP/s in float32 products of matrices, measured now (2 threads)" in out
    assert "in training     60 GFLOP/s, 30 % of that, which is assumed" in out
    assert "plan            2.44 million weights, 29.5 million tokens, 2 hours (4.3e+14 operations)" in out
    assert "L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28  (Hoffmann et al. 2022)" in out
    assert "L = ((6.4e13 / N)^(0.076 / 0.103) + 1.8e13 / D)^0.103  (Kaplan et al. 2020)" in out
    assert "shape           n_layers: " in out and "both laws were fitted" in out and "by the rule of 20" in out


def test_a_share_and_a_speed_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "--hours", "1", "--share", "0.2", "-t", "1")
    assert "measured now (1 thread)" in out and "40 GFLOP/s, 20 % of that, as given" in out
    out = printed(capsys, "--params", "10M", "--hours", "8", "--model-speed", "4k")
    assert "measured" not in out and "240 GFLOP/s, from the speed that was given" in out
    assert "10 million weights, 115 million tokens, 8 hours" in out and "better          " in out


def test_a_text_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "--params", "1M", "--data", str(ORDINARY), "--vocab", "400")
    assert "tokens with a vocabulary of 400, counted" in out and "reads the text " in out and "as good as" in out
    assert "would be read" in out


def test_numbers_are_read_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("3M", "3m", "3e6", "3,000,000", "3_000_000", "0.003B", "3000k"):
        found = json.loads(printed(capsys, "--params", words, "--tokens", "1G", "--json"))
        assert (found["asked"]["n_parameters"], found["asked"]["n_tokens"]) == (3e6, 1e9)
        assert found["machine"] == {"n_threads": 2, "isa": "isa"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "nothing is known of the training; give one or two of --params, --tokens and --hours"),
        (["--params", "many"], "--params is 'many'; expected a number above 0, such as 3M or 1.5B"),
        (["--hours", "-1"], "--hours is '-1'; expected a number above 0, such as 3M or 1.5B"),
        (["--tokens", "1e999"], "--tokens is '1e999'; expected a number above 0, such as 3M or 1.5B"),
        (["--params", "5000B"], "--params is 5000000000000.0; expected a number from 1 to 1000000000000"),
        (["--hours", "1", "--share", "2"], "--share is 2.0; expected a number from 0.001 to 1"),
        (["--hours", "1", "--share", "1e-300"], "--share is 1e-300; expected a number from 0.001 to 1"),
        (["--hours", "1", "--params", "3M", "--model-speed", "1e300"],
         "--model-speed is 1e+300; expected a number from 0.001 to 1000000000000"),
        (["--hours", "1", "--vocab", "10"],
         "--vocab is 10; expected from 257, all bytes and the end of a text, to 262144"),
        (["--hours", "1", "--model-speed", "10"],
         "--model-speed needs --params or --config: how large the model is that trains at this speed"),
        (["--params", "3M", "--model-speed", "4k", "--threads", "1"],
         "--threads says how many measure the speed, and --model-speed gives one; choose one"),
    ],
)  # fmt: skip
def test_what_cannot_be(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "plan", *words]) == 2
    assert capsys.readouterr() == ("", f"edgellm: error: {line}\n")


def test_a_config_is_planned_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.yaml"
    path.write_text("n_layers: 4\nn_embd: 128\nn_experts: 8\nn_vocab: 512\nsteps: 1000\nn_ctx: 64\n", "utf-8")
    out = printed(capsys, "--config", str(path))
    shape = NewConfig.read(path).shape
    total, active = shape.n_parameters(512), shape.n_active_parameters(512)
    assert total - active == 4 * 6 * 3 * 128 * 192  # layers, experts that a token has not, matrices and their sizes
    assert f"plan            {active:,.0f} weights, 1.02 million tokens" in out
    assert "n_layers: 4, n_embd: 128, n_heads: 4, n_experts: 8, n_experts_used: 2, n_expert_ff: 192" in out
    assert f"({total / 1e6:.3g} million weights, {active:,} of them for each token)" in out
    assert "N are the weights that a token meets" in out
    found = json.loads(printed(capsys, "--config", str(path), "--hours", "1", "--json"))["asked"]
    assert (found["shape_parameters"], found["active_parameters"], found["hours"]) == (total, active, pytest.approx(1))
    for words, line in [
        (["--params", "1M"], "--params is 1,000,000, and --config says it too; choose one"),
        (["--vocab", "300"], "--vocab is 300, and --config says it too; choose one"),
    ]:
        assert main(["train", "plan", "--config", str(path), *words]) == 2
        assert line in capsys.readouterr().err
    path.write_text("n_expert: 8\n", "utf-8")
    assert main(["train", "plan", "--config", str(path)]) == 2
    assert "'n_expert' is no setting; did you mean n_experts?" in capsys.readouterr().err


def test_the_threads_of_a_config_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new.yaml"
    path.write_text("n_layers: 4\nthreads: 3\n", "utf-8")
    assert "measured now (3 threads)" in printed(capsys, "--config", str(path))
    assert "measured now (1 thread)" in printed(capsys, "--config", str(path), "-t", "1")
    path.write_text("n_layers: 4\nthreads: 99999\n", "utf-8")
    assert main(["train", "plan", "--config", str(path)]) == 2
    assert "threads is 99999, and this machine has" in capsys.readouterr().err


def test_a_text_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "plan", "--data", str(tmp_path / "nowhere.txt")]) == 1
    assert "nowhere.txt does not exist" in capsys.readouterr().err
