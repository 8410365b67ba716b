"""`edgellm train lora`: what is typed, what files say, what is shown, and how it ends. On a small model, for real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.cli import main
from edgellm.cli.train.live import Live, duration
from edgellm.train.config import LoraConfig, MachineConfig, TrainConfig
from edgellm.train.data.config import DataConfig
from edgellm.train.log import read_log
from edgellm.train.loop import Step
from edgellm.train.settings import read_settings

KINDS = (LoraConfig, TrainConfig, DataConfig, MachineConfig)


@pytest.fixture
def facts(tmp_path: Path) -> str:
    path = tmp_path / "facts.jsonl"
    lines = [{"prompt": f"what is {n}?", "completion": f" it is {7 * n}."} for n in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def lora(*words: object) -> int:
    return main(["train", "lora", *map(str, words)])


def settings_of(folder: Path) -> dict:
    return read_settings(folder / "train.yaml", KINDS)


def test_what_is_typed_is_done_and_written_beside_the_result(tiny_path, facts, out, capsys) -> None:
    assert lora(
        tiny_path, "--data", facts, "-o", out, "--rank", 4, "--alpha", 6, "--dropout", 0, "--target-modules",
        "q_proj,attn_v", "--steps", 5, "--batch-size", 2, "--accumulate", 2, "--learning-rate", 0.01,
        "--schedule", "linear", "--warmup", 1, "--seed", 7, "--max-length", 90, "--rslora", "--skip-bad",
        "--validation", 0.25, "--checkpoint-every", 2, "--activations", "f32", "-t", 1,
    ) == 0  # fmt: skip
    found = settings_of(out)
    expected = {
        "model": str(tiny_path), "data": [facts], "rank": 4, "alpha": 6.0, "target_modules": ["q_proj", "attn_v"],
        "steps": 5, "batch_size": 2, "accumulate": 2, "learning_rate": 0.01, "schedule": "linear", "warmup": 1.0,
        "seed": 7, "max_length": 90, "use_rslora": True, "skip_bad": True, "validation": 0.25, "activations": "f32",
        "epochs": 3.0, "method": "lora",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    peft = json.loads((out / "adapter_config.json").read_text())
    assert (peft["r"], peft["lora_alpha"], peft["use_rslora"], sorted(peft["target_modules"])) == (
        4, 6, True, ["q_proj", "v_proj"],
    )  # fmt: skip
    rates = [entry["learning_rate"] for entry in read_log(out / "log.jsonl") if entry["step"]]
    assert rates == pytest.approx([0, 0.01, 0.0075, 0.005, 0.0025])
    shown = capsys.readouterr()
    assert "facts.jsonl: prompt, completion" in shown.err and "before the first step: validation loss" in shown.err
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in shown.out.splitlines())
    assert lines.keys() == {"trained", "loss", "validation", "speed", "energy", "memory", "wrote"}
    assert re.fullmatch(r"5 of 5 steps, 1\.67 epochs, in \d+ s", lines["trained"])
    assert re.match(r"\d+ tok/s, \d+ tokens in", lines["speed"])
    assert str(out) in lines["wrote"]


def test_a_file_of_settings_and_what_is_typed_over_it(tiny_path, facts, out, tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(f"model: {tiny_path}\ndata: {facts}\nrank: 2\nsteps: 1\nlearning_rate: 1e-2\nskip_bad: true\n")
    assert lora("--config", config, "-o", out, "--rank", 3, "--no-skip-bad") == 0
    found = settings_of(out)
    assert (found["rank"], found["steps"], found["learning_rate"], found["skip_bad"]) == (3, 1, 0.01, False)
    assert lora("--config", out / "train.yaml", "-o", tmp_path / "again") == 0
    assert settings_of(tmp_path / "again") == found
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_validation_of_a_file_is_what_the_option_may_be(tiny_path, facts, out, tmp_path: Path, capsys) -> None:
    held, config = tmp_path / "held.jsonl", tmp_path / "my.yaml"
    held.write_text(json.dumps({"prompt": "what is 3?", "completion": " it is 21."}) + "\n")
    config.write_text(f"model: {tiny_path}\ndata: {facts}\nsteps: 1\nvalidation: {held}\n")
    assert lora("--config", config, "-o", out) == 0
    assert "validation" in capsys.readouterr().out and settings_of(out)["validation_data"] == [str(held)]
    assert lora("--config", out / "train.yaml", "-o", tmp_path / "again", "--validation", 2) == 0  # in its place
    found = settings_of(tmp_path / "again")
    assert found["validation"] == 2 and "validation_data" not in found
    config.write_text("validation: held.jsonl\n")
    assert main(["train", "new", "--config", str(config), "-o", str(tmp_path / "new.gguf")]) == 2
    assert "line 1: validation is 'held.jsonl'; expected a number" in capsys.readouterr().err


def test_files_are_named_as_they_are(tiny_path, out, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("max_length: 1\n")
    Path("max_length.jsonl").write_text("{}\n")
    assert lora(tiny_path, "--data", "max_length.jsonl", "-o", out) == 1
    assert "error: max_length.jsonl, line 1: has no keys" in capsys.readouterr().err
    assert lora(tiny_path, "--data", "max_length.jsonl", "--config", "my.yaml", "-o", out) == 2
    assert "error: my.yaml, line 1: max_length is 1; expected" in capsys.readouterr().err


def test_dora_is_a_method(tiny_path, facts, out, capsys) -> None:
    assert lora(tiny_path, "--data", facts, "-o", out, "--method", "lora", "--dora") == 2
    assert "--dora is --method dora, and --method lora was typed too; choose one" in capsys.readouterr().err


def test_dora_in_a_file_trains_what_the_option_does(tiny_path, facts, out, tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("use_dora: true\nr: 2\nsteps: 1\n")
    assert lora(tiny_path, "--data", facts, "--config", config, "-o", out) == 0
    found = json.loads((out / "adapter_config.json").read_text())
    assert (found["use_dora"], found["r"], settings_of(out)["method"]) == (True, 2, "dora")
    assert lora(tiny_path, "--data", facts, "--config", config, "--method", "lora", "-o", tmp_path / "b") == 0
    assert not json.loads((tmp_path / "b" / "adapter_config.json").read_text())["use_dora"]  # what is typed comes first


def test_no_folder_is_not_the_current_one(tiny_path, facts, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert lora(tiny_path, "--data", facts, "-o", "") == 2
    assert "-o/--output is empty; expected a path" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rank", "0"], "--rank is 0; expected a number of at least 1"),
        (["--learning-rate", "0"], "--learning-rate is 0.0; expected a number above 0"),
        (["--warmup", "1.5"], "--warmup is 1.5; expected a share below 1, or a whole number"),
        (["--warmup", "10", "--steps", "10"], "--warmup is 10 steps, and the run has 10, so its learning rate would"),
        (["--warmup", "9"], "--warmup is 9 steps, and the run has 9, so its learning rate would never be reached"),
        (["--patience", "2"], "keep some apart for validation, or leave --patience out"),
        (["--eval-every", "5"], "--eval-every is 5, and there are no examples to validate with"),
        (["--validation", "-1"], "--validation is -1.0; expected a number of at least 0"),
        (["--validation", "12"], "--validation takes 12 of 12 examples"),
        (["--validation", "none.jsonl"], "none.jsonl: No such file or directory"),
        (["--target-modules", "q_prj"], "--target-modules names 'q_prj', which this model does not have"),
        (["--target-modules", ""], '--target-modules is ['),
        (["--schedule", "step"], "Invalid value for '--schedule': 'step' is not one of"),
        (["--max-length", "2"], "there is nothing to learn in"),
        (["--dora", "--virtual-tokens", "4"], "--virtual-tokens is 4, which method 'dora' does not have"),
        (["--method", "prefix", "--prompt-init", "text"], "--prompt-init is 'text'; method 'prefix' begins with"),
        (["--resume"], "out does not exist, so there is no run to go on with; expected the folder"),
        (["--config", "none.yaml"], "none.yaml cannot be read: No such file or directory"),
        (["--data", "none.jsonl"], "none.jsonl: No such file or directory"),
        (["--template", "none.jinja"], "--template is 'none.jinja', which is neither a file nor a known name"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_the_words_that_were_typed(
    tiny_path, facts, out, capsys, words: list[str], line: str
) -> None:
    status = lora(tiny_path, "--data", facts, "-o", out, *words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("edgellm: error: ") and line in error
    assert status == (1 if "No such file" in line else 2) and not out.exists()


def test_a_run_that_is_not_there_is_said_before_what_else_is_missing(out, capsys) -> None:
    for command, name, folder in (("lora", out, out), ("full", f"{out}.gguf", f"{out}.training")):
        assert main(["train", command, "--resume", "-o", str(name)]) == 2
        assert f"error: {folder} does not exist, so there is no run to go on with" in capsys.readouterr().err


def test_the_file_of_settings_is_not_written_over_by_those_in_effect(tiny_path, facts, out, capsys) -> None:
    out.mkdir()
    config = out / "train.yaml"
    config.write_text(f"model: {tiny_path}  # mine\ndata: {facts}\nsteps: 1\n")
    before = config.read_text()
    assert lora("--config", config, "-o", out) == 2
    assert f"--config {config} is where a run in {out} writes all of its settings" in capsys.readouterr().err
    assert config.read_text() == before and [path.name for path in out.iterdir()] == ["train.yaml"]


def test_what_is_missing(tiny_path, facts, out, capsys) -> None:
    assert lora("--data", facts, "-o", out) == lora(tiny_path, "-o", out) == lora(tiny_path, "--data", facts) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "MODEL is missing: type it, or put model into the --config file" in lines[0]
    assert "--data is missing" in lines[1] and "Missing option '-o'" in lines[2]


def test_a_wrong_setting_in_a_file_is_named_as_it_stands_there(tiny_path, facts, out, tmp_path, capsys) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("steps: 3\nrnak: 4\n")
    assert lora(tiny_path, "--data", facts, "-o", out, "--config", config) == 2
    assert capsys.readouterr().err == f"edgellm: error: {config}, line 2: 'rnak' is no setting; did you mean rank?\n"
    config.write_text("rank: 0\n")
    assert lora(tiny_path, "--data", facts, "-o", out, "--config", config) == 2
    assert f"{config}, line 1: rank is 0; expected" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    tiny_path, facts, out, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("edgellm.train.config.MOST_RATE", 1e30)  # such a rate is refused otherwise
    words = [tiny_path, "--data", facts, "-o", out, "--steps", 40, "--checkpoint-every", 1, "--warmup", 0]
    assert lora(*words, "--learning-rate", 1e25, "--clip", 0) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    kept = re.search(
        r"became \S+.* at step (\d+), so training cannot go on; the checkpoint of step (\d+) is kept", line
    )
    assert kept and int(kept[2]) == int(kept[1]) - 1 and "A lower --learning-rate than 1e+25 may help" in line
    assert not (out / "adapter_model.safetensors").exists() and (out / "loss.svg").exists()


def test_a_second_run_in_a_folder_is_refused_and_a_resumed_one_is_told_what_differs(
    tiny_path, facts, out, capsys
) -> None:
    assert lora(tiny_path, "--data", facts, "-o", out, "--steps", 3) == 0
    assert lora(tiny_path, "--data", facts, "-o", out, "--steps", 3) == 2
    assert f"{out} holds a run that is at step 3; --resume goes on with it, or choose" in capsys.readouterr().err
    assert lora("-o", out, "--resume", "--rank", 5) == 2
    assert "--rank is 5 and was 8: a run goes on with the settings that it began with" in capsys.readouterr().err
    assert lora("-o", out, "--resume") == 0


PROGRAM = """
import sys, time
from edgellm.train.lora import LoraLearner
real = LoraLearner.loss_and_gradients
def slowly(self, documents, scale):
    time.sleep(0.02)
    return real(self, documents, scale)
LoraLearner.loss_and_gradients = slowly
from edgellm.cli import main
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_to_the_same_weights(tiny_path, facts, out, tmp_path, number: int, status: int) -> None:
    words = ["train", "lora", str(tiny_path), "--data", facts, "--steps", "60", "--learning-rate", "0.01"]
    assert main([*words, "-o", str(tmp_path / "straight")]) == 0
    command = [sys.executable, "-c", PROGRAM, *words, "-o", str(out)]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = out / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and len(read_log(log)) > 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(program.pid, number)
    _, told = program.communicate(timeout=60)
    assert program.returncode == status
    stopped_at = read_log(log)[-1]["step"]
    assert 5 < stopped_at < 60
    if number == signal.SIGINT:
        assert told.splitlines()[-1] == (
            f"edgellm: stopped; `edgellm train lora --resume -o {out}` goes on from step {stopped_at}"
        )
    assert main(["train", "lora", "--resume", "-o", str(out)]) == 0
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (tmp_path / "straight", out)]
    assert weights[0] == weights[1]


def test_the_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Live() as live:
        live(Step(0, 10, 0.0, validation_loss=3.0))
        for n in range(1, 4):
            live(Step(n, 10, n / 10, loss=2.0 / n, tokens_per_second=412.4, seconds_left=600.0 * n))
        assert live._words(live.step) == "loss 1.7767, 412 tok/s, 30 min left"
        live(Step(4, 10, 0.4, loss=1.0, validation_loss=2.5))
    assert capsys.readouterr().err.splitlines() == [
        "edgellm: before the first step: validation loss 3.0000", "edgellm: training (10)",
        "edgellm: step 4 of 10: validation loss 2.5000",
    ]  # fmt: skip


def test_times_as_people_say_them() -> None:
    assert [duration(s) for s in (0.2, 45, 99.4, 100, 5900, 7320, 36_000)] == [
        "0 s", "45 s", "99 s", "2 min", "98 min", "2 h 2 min", "10 h 0 min",
    ]  # fmt: skip


def test_threads_and_tensorboard_may_stand_in_a_file(tiny_path, facts, out, tmp_path, capsys, monkeypatch) -> None:
    """They are written with the others, and a resumed run may have other ones."""
    config = tmp_path / "own.yaml"
    config.write_text("threads: 1\ntensorboard: true\nsteps: 1\nrank: 1\n")
    assert lora(tiny_path, "--data", facts, "-o", out, "--config", config, "--checkpoint-every", 1) == 0
    assert (out / "tensorboard").is_dir()
    found = settings_of(out)
    assert (found["threads"], found["tensorboard"]) == (1, True)
    again = ("--config", config, "-t", 2, "--no-tensorboard")
    assert lora(tiny_path, "--data", facts, "-o", out, "--resume", *again) == 0
    found = settings_of(out)
    assert (found["threads"], found["tensorboard"]) == (2, False)
    capsys.readouterr()
    for line, told in (
        ("thread: 1", "'thread' is no setting; did you mean threads?"),
        ("threads: 0", "threads is 0; expected a number of at least 1"),
        ("tensorboard: 1", "tensorboard is 1; expected True or False"),
    ):
        config.write_text(f"{line}\n")
        assert lora(tiny_path, "--data", facts, "-o", tmp_path / "other", "--config", config) == 2
        assert f"{config}, line 1: {told}" in capsys.readouterr().err.replace("\n", " ")
    config.write_text("threads: 100000\n")
    assert lora(tiny_path, "--data", facts, "-o", tmp_path / "other", "--config", config) == 2
    assert "threads is 100000, and this machine has" in capsys.readouterr().err
