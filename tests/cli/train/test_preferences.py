"""`edgellm train dpo`, `kto`, `orpo`, `reward`, `grpo` and `ppo`: what is typed and what is told. On a small model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgellm.cli import main, models
from edgellm.cli.train.outcome import taught_lines
from edgellm.train.config import LoraConfig, MachineConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.log import read_log
from edgellm.train.preference.config import GrpoConfig, PpoConfig, RewardSources
from edgellm.train.settings import read_settings

CONFIGS = {"grpo": GrpoConfig, "ppo": PpoConfig}
QUICK = ("--steps", 3, "--batch-size", 2, "--learning-rate", 0.01, "-t", 1)


def train(*words: object) -> int:
    return main(["train", *map(str, words)])


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return write(tmp_path / "pairs.jsonl",
                 [{"prompt": f"say {n}", "chosen": f" {n}", "rejected": f" {n * 7}!"} for n in range(12)])  # fmt: skip


@pytest.fixture
def judged(tmp_path: Path) -> str:
    return write(tmp_path / "judged.jsonl",
                 [{"prompt": f"say {n}", "completion": f" {n}", "label": n % 2 == 0} for n in range(12)])  # fmt: skip


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_pairs(name: str, tiny_path, pairs, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert train(name, tiny_path, "--data", pairs, "-o", out, "--validation", 4, "--beta", 0.3, *QUICK) == 0
    told = capsys.readouterr().out
    assert re.search(r"^held out    accuracy \d\.\d+ before, \d\.\d+ after$", told, re.MULTILINE)
    assert re.search(r"^held out    margin -?\d\.\d+ before, -?\d\.\d+ after$", told, re.MULTILINE)
    assert "beta: 0.3\n" in (out / "train.yaml").read_text()
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert {"margin", "accuracy"} <= read_log(out / "log.jsonl")[-1]["figures"].keys()


def test_judged_answers(tiny_path, judged, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    words = ("--undesirable-weight", 0.5, "--validation", 4)
    assert train("kto", tiny_path, "--data", judged, "-o", out, *words, *QUICK) == 0
    assert "held out    good reward" in capsys.readouterr().out
    assert "undesirable_weight: 0.5\n" in (out / "train.yaml").read_text()


@pytest.mark.parametrize("name", ["dpo", "orpo", "reward"])
def test_a_pair_of_two_answers_that_are_the_same_is_left_out_aloud(
    name: str, tiny_path, tmp_path: Path, capsys
) -> None:
    same = {"prompt": "say 1", "chosen": " 1", "rejected": " 1"}
    late = {"prompt": "say 2", "chosen": " 2" * 90 + " a", "rejected": " 2" * 90 + " b"}
    good = [{"prompt": f"say {n}", "chosen": f" {n}", "rejected": f" {n * 7}!"} for n in range(4)]
    data = write(tmp_path / "some.jsonl", [same, *good, late])
    words = ("--max-length", 80, "--steps", 1, "-t", 1)
    assert train(name, tiny_path, "--data", data, "-o", tmp_path / "out", *words) == 0
    told = capsys.readouterr().err
    assert "left out    2 pairs of two answers that are the same within --max-length: neither is better" in told
    data = write(tmp_path / "all.jsonl", [same, late])
    assert train(name, tiny_path, "--data", data, "-o", tmp_path / "none", *words) == 2
    told = capsys.readouterr().err
    assert "2 are pairs of two answers that are the same, cut to 80 tokens (--max-length)" in told
    assert not (tmp_path / "none").exists()


def test_what_kto_lacks_is_said(tiny_path, tmp_path: Path, capsys) -> None:
    def told_of(n_good: int, n_bad: int, *words: object) -> str:
        data = write(
            tmp_path / f"{n_good}-{n_bad}.jsonl",
            [{"prompt": f"say {n}", "completion": f" {n}", "label": n < n_good} for n in range(n_good + n_bad)],
        )
        out = tmp_path / "-".join(map(str, (n_good, n_bad, *words)))
        train("kto", tiny_path, "--data", data, "-o", out, "--steps", 1, "-t", 1, *words)
        return capsys.readouterr().err

    told = told_of(4, 0)
    assert "judged      4 good, 0 not good" in told
    assert "note        all 4 answers are good, so nothing says what to avoid: KTO learns from both kinds" in told
    assert "all 4 answers are not good, so nothing says what to say instead" in told_of(0, 4)
    told = told_of(9, 1)
    assert "9 answers are good and 1 are not; that both count alike, give --undesirable-weight 6.8 to 9" in told
    assert "or --desirable-weight 0.11 to 0.15" in told
    assert "count alike" not in told_of(9, 1, "--undesirable-weight", 8) and "note" not in told_of(4, 4)
    assert "9 of 10 answers count nothing, for --desirable-weight is 0" in told_of(9, 1, "--desirable-weight", 0)
    assert "1 of 10 answers count nothing, for --undesirable-weight is 0" in told_of(9, 1, "--undesirable-weight", 0)
    assert "guessed from one answer" in told_of(4, 4, "--batch-size", 1)
    assert "there is one example; expected two at least" in told_of(1, 0)


def test_a_run_that_was_stopped_goes_on_with_its_settings(tiny_path, pairs, tmp_path: Path, capsys) -> None:
    words = ("--steps", 4, "--batch-size", 2, "-t", 1, "--loss-type", "ipo", "--checkpoint-every", 2)
    for name in ("whole", "parts"):
        assert train("dpo", tiny_path, "--data", pairs, "-o", tmp_path / name, *words) == 0
    for late in (tmp_path / "parts" / "checkpoints").glob("step-00000004*"):
        late.unlink()
    assert train("dpo", "--resume", "-o", tmp_path / "parts", "-t", 1) == 0
    whole, parts = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_what_means_nothing_to_a_command_is_refused_in_its_file(tiny_path, pairs, tmp_path: Path, capsys) -> None:
    config, out = tmp_path / "my.yaml", tmp_path / "a"
    config.write_text("train_on: last\n")
    assert train("dpo", tiny_path, "--data", pairs, "--config", config, "-o", out) == 2
    line = "my.yaml: train_on is 'last', which means nothing to `edgellm train dpo`; leave it out"
    assert line in capsys.readouterr().err and not out.exists()


def test_dora_is_a_method_of_every_command_that_makes_an_adapter(tiny_path, pairs, tmp_path: Path) -> None:
    assert train("dpo", tiny_path, "--data", pairs, "--dora", "--steps", 1, "-o", tmp_path / "a") == 0
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["use_dora"]


def test_own_defaults_are_shown_and_kept(tiny_path, pairs, tmp_path: Path, capsys) -> None:
    assert train("dpo", "--help") == 0
    shown = capsys.readouterr().out
    assert "[default: 5e-05]" in shown and "--label-smoothing" in shown and "--train-on" not in shown
    assert train("dpo", tiny_path, "--data", pairs, "-o", tmp_path / "out", "--steps", 1, "-t", 1) == 0
    assert "learning_rate: 5.0e-05\n" in (tmp_path / "out" / "train.yaml").read_text()


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return write(tmp_path / "prompts.jsonl", [{"prompt": f"say {n}"} for n in range(8)])


@pytest.fixture
def rules(tmp_path: Path) -> str:
    (tmp_path / "rules.py").write_text("def short(completions):\n    return [-len(text) for text in completions]\n")
    return f"{tmp_path / 'rules.py'}:short"


def test_a_reward_model_and_what_learns_from_it(tiny_path, pairs, prompts, tmp_path: Path, capsys) -> None:
    rewards = tmp_path / "rewards"
    assert train("reward", tiny_path, "--data", pairs, "-o", rewards, "--margin", 0.2, "--validation", 4, *QUICK) == 0
    assert "held out    accuracy" in capsys.readouterr().out
    words = ("--num-generations", 2, "--max-new-tokens", 4, "--validation", 2)
    out = tmp_path / "grpo"
    assert train("grpo", tiny_path, "--data", prompts, "-o", out, "--reward-model", rewards, *words, *QUICK) == 0
    told = capsys.readouterr().out
    assert re.search(r"^held out    reward -?\d\.\d+ before, -?\d\.\d+ after$", told, re.MULTILINE)


def test_weights_lie_as_tiles_only_where_answers_are_written(
    tiny_path, pairs, prompts, rules, tmp_path: Path, monkeypatch
) -> None:
    """Else the file is read for many tokens at a time, as quickly, and its pages are in memory in any case."""
    layouts, load = [], models.load
    monkeypatch.setattr(models, "load", lambda path, runtime: layouts.append(runtime.layout) or load(path, runtime))
    assert train("dpo", tiny_path, "--data", pairs, "-o", tmp_path / "dpo", *QUICK) == 0
    words = ("--reward", rules, "--num-generations", 2, "--max-new-tokens", 4)
    assert train("grpo", tiny_path, "--data", prompts, "-o", tmp_path / "grpo", *words, *QUICK) == 0
    assert layouts == ["file", "auto"]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_rewards_are_settings_of_a_run(name: str, tiny_path, prompts, rules, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    rewarded = ("--reward", rules, "--reward-regex", r"\d")
    words = ("--num-generations", 2, "--max-new-tokens", 4, "--checkpoint-every", 2, *rewarded)
    assert train(name, tiny_path, "--data", prompts, "-o", out, *words, *QUICK) == 0
    kept = read_settings(
        out / "train.yaml", (LoraConfig, TrainConfig, DataConfig, MachineConfig, RewardSources, CONFIGS[name])
    )
    assert kept["reward"] == [rules] and kept["reward_regex"] == [r"\d"] and kept["num_generations"] == 2
    (out / "checkpoints" / "step-00000003.safetensors").unlink()
    before = (out / "adapter_model.safetensors").read_bytes()
    assert train(name, "--resume", "-o", out, "-t", 1) == 0
    assert (out / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("words", "told"), [
    ((), "or the folder of a model that was trained to judge (--reward-model)"),
    ((), "reward is missing: name a function (--reward)"),
    (("--reward", "nowhere.py:f"), "--reward is nowhere.py:f, and there is no file nowhere.py"),
    (("--reward-regex", "("), "--reward-regex is '(', which is no regular expression"),
    (("--reward-model", "nowhere"), "--reward-model is nowhere, which is no folder"),
    (("--reward-regex", "a", "--num-generations", 1), "--num-generations is 1; expected a number of at least 2"),
])  # fmt: skip
def test_no_reward_one_clear_error(words, told: str, tiny_path, prompts, tmp_path: Path, capsys) -> None:
    assert train("grpo", tiny_path, "--data", prompts, "-o", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_rewards_that_taught_nothing_are_told(tiny_path, prompts, tmp_path: Path, capsys) -> None:
    """Else a run that learnt nothing would look like one that went well."""
    words = ("--num-generations", 3, "--max-new-tokens", 4, *QUICK)
    never = ("--reward-regex", "no answer has this")
    assert train("grpo", tiny_path, "--data", prompts, "-o", tmp_path / "equal", *never, *words) == 0
    assert "note        all answers to a prompt had the same reward, every time" in capsys.readouterr().out
    assert read_log(tmp_path / "equal" / "log.jsonl")[-1]["figures"]["equal_groups"] == 1
    (tmp_path / "rules.py").write_text("def each(completions):\n    return range(len(completions))\n")
    differ = ("--reward", f"{tmp_path / 'rules.py'}:each")
    assert train("grpo", tiny_path, "--data", prompts, "-o", tmp_path / "differ", *differ, *words) == 0
    assert "note        " not in capsys.readouterr().out
    found = dict(taught_lines([{"figures": {"equal_groups": share}} for share in (1.0, 0.5)]))
    assert found["note"] == "for 75% of the prompts all answers had the same reward, which teaches nothing"


def test_a_reward_that_raises(tiny_path, prompts, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.py").write_text("def f(completions):\n    raise KeyError('no')\n")
    words = ("--reward", f"{tmp_path / 'bad.py'}:f", "--max-new-tokens", 3)
    assert train("grpo", tiny_path, "--data", prompts, "-o", tmp_path / "out", *words, *QUICK) == 1
    error = capsys.readouterr().err
    assert "raised KeyError: 'no'" in error and "Traceback" not in error


@pytest.mark.parametrize(("words", "told"), [
    (("dpo", "--beta", 0), "--beta is 0.0; expected a number above 0"),
    (("dpo", "--loss-type", "ipo", "--label-smoothing", 0.1), "--label-smoothing is 0.1; expected 0"),
    (("kto",), "so it is one of preferences; expected prompt, completion, label"),
])  # fmt: skip
def test_one_clear_error(words, told: str, tiny_path, pairs, tmp_path: Path, capsys) -> None:
    assert train(words[0], tiny_path, "--data", pairs, "-o", tmp_path / "out", *words[1:]) != 0
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
