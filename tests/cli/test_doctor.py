"""edgellm doctor, and run with --estimate and --convert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgellm
from edgellm import hub
from edgellm.cli import checkup, main
from edgellm.cli.expected import verdict
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.graph import Tuning
from edgellm.measure.estimate import estimate
from edgellm.measure.limits import Limits
from edgellm.measure.reach import Reach
from edgellm.params import RuntimeConfig
from tests.convert import checkpoints
from tests.convert.quantized_folders import AWQ, awq, quantize_folder

Capture = pytest.CaptureFixture[str]


class OthersThatUse:
    def __init__(self, cores: float) -> None:
        self.cores = lambda: cores


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose speeds are known: measuring takes seconds, and is tested where it is done."""
    monkeypatch.setattr(checkup, "_limits", lambda store, n_threads: Limits(20e9 * n_threads, 400e9))
    monkeypatch.setattr(checkup, "measure_reach", lambda store, tuning, name: Reach(name, "row by row", 24e9, 200e9))
    monkeypatch.setattr(checkup, "_of_the_machine", lambda: iter(()))
    monkeypatch.setattr(checkup, "OtherWork", lambda: OthersThatUse(0.0))
    monkeypatch.setattr(checkup, "remembered", lambda store, weights: Tuning(checkup.usable_threads()))
    monkeypatch.setattr(checkup, "KERNELS", [])


def test_a_machine_without_faults(home: Path, limits: None, capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    rows = capsys.readouterr().out.splitlines()
    said = {row.split("  ")[0]: row for row in rows if row}
    n = checkup.usable_threads()
    assert f"reads {20 * n}.0 GB/s with {n} threads, 20.0 GB/s with one" in said["memory speed"] or n == 1
    assert "nothing is wrong" in rows
    assert "Q4_K, row by row: writing reads 24.0 GB/s" in rows[5]
    assert "choose" in said and " tokens/s, takes about " in said["choose"]
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["faults"] == [] and found["advice"][0]["model"] in hub.catalog()


def test_a_busy_machine_is_measured_again_and_not_called_wrong(
    home: Path, limits: None, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    slow, n_cores = Reach("Q4_K", "row by row", 1e9, 1e9), checkup.usable_threads()
    given = [slow] * 5 + [Reach("Q4_K", "row by row", 2e9, 1e9)] + [slow] * 100
    monkeypatch.setattr(checkup, "measure_reach", lambda store, tuning, name: given.pop(0))
    monkeypatch.setattr(checkup, "OtherWork", lambda: OthersThatUse(n_cores))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert len(given) == 100 and f"busy          other programs kept {n_cores:.1f} of " in out
    assert not any(line.startswith(("wrong", "nothing is")) for line in out.splitlines())
    assert "writing reads 2.0 GB/s" in out  # the best of all tries
    # Calm at the second try: the same speeds are a fault now.
    given, cores = [slow] * 100, [n_cores, 0.0]
    monkeypatch.setattr(checkup, "OtherWork", lambda: OthersThatUse(cores.pop(0)))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["busy_cores"] is None and not cores and len(given) == 96
    assert found["faults"][-1].startswith("the kernels of Q4_K reach ")


def test_what_is_wrong_is_a_line_each(home: Path, limits: None, capsys: Capture) -> None:
    for number in range(4):
        (home / "kernels" / f"avx2-{number:016x}").mkdir(parents=True)
    part = home / "models/.partial/hf/some/repo/x.gguf/0123-x.gguf.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    (home / "models/damaged.gguf").write_bytes(b"<html>")
    assert main(["doctor"]) == 0
    wrong = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert any(line.startswith("hf:some/repo/x.gguf is half fetched: 1.0 kB are here") for line in wrong)
    assert "damaged.gguf is damaged: it is not a GGUF file" in wrong
    assert any("4 folders of kernels of other versions" in line for line in wrong)


def test_slow_kernels_are_told_with_their_layout() -> None:
    (line,) = checkup._of_speed(Limits(40e9, 1e12), [Reach("Q4_K", "row by row", 10e9, 1e11)])
    assert line.startswith("the kernels of Q4_K reach 25 % of what memory gives in the layout row by row: measure anew")


@pytest.mark.parametrize(
    ("memory", "speed", "first"),
    [(8e9, 25e9, "qwen3-4b"), (64e9, 60e9, "qwen3-8b"), (8e9, 10e9, "qwen3-1.7b"), (1.2e9, 10e9, "qwen2.5-coder-0.5b"),
     (64e9, 1e9, "smollm2-135m")],
)  # fmt: skip
def test_the_largest_model_is_chosen_that_fits_and_keeps_up_with_reading(
    memory: float, speed: float, first: str
) -> None:
    chosen = checkup.advise(int(memory), speed)
    model = hub.catalog()[chosen[0].model]
    assert chosen[0].model == first
    assert model.memory <= memory and chosen[0].tokens_per_second >= 6
    assert len(chosen) == 1 or hub.catalog()[chosen[1].model].n_bytes < model.n_bytes


def test_no_machine_is_too_small_for_an_answer() -> None:
    assert checkup.advise(10**8, 1e9) == []


def test_an_estimate_of_a_tiny_model(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.measure.reading.resident_memory", lambda: 0)  # of the tokenizer, nothing is counted
    checkpoints.save("qwen2", tmp_path / "model")
    path = tmp_path / "tiny.gguf"
    convert_checkpoint(tmp_path / "model", path, "F32")
    found = estimate(path, RuntimeConfig(n_threads=1, n_ctx=256))
    with edgellm.load(path, n_threads=1, n_ctx=256) as model:
        cache = model._runner.cache
        assert found.token_bytes == cache.token_bytes == 3 * 2 * 2 * 16 * 2
        tensors = model._runner.tensors.values()
        embedding = model._runner.tensors["token_embd.weight"].n_bytes
    assert found.weight_bytes == sum(tensor.n_bytes for tensor in tensors) - embedding
    tokens = 256 * (found.token_bytes + found.position_bytes)
    rows = found.memory(256) - found.memory(0) - tokens  # of embeddings, of which some are read
    assert 0.9 * embedding < rows <= embedding
    assert found.prefill_tokens_per_second > 0 and found.decode_tokens_per_second > 0
    assert main(["run", str(path), "--estimate", "-c", "256", "-t", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines][:4] == ["model", "memory", "machine", "speed"]
    assert not lines[4:] or lines[4].startswith("busy     other programs kept ")  # as they may while this runs
    assert "with a full context of 256 tokens (384 B each)" in lines[1]
    assert lines[2].startswith("machine  it fits: ")


def test_an_estimate_of_a_model_that_is_not_here(
    kernels_at_hand: None, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgellm.measure.limits.measure_limits", lambda store, team: Limits(20e9, 1e12))
    assert main(["run", "llama3.2-3b", "--estimate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model    llama3.2-3b, which is not here yet: edgellm pull llama3.2-3b fetches it"
    assert lines[1].startswith("memory   about 3.2 GB with a full context; ")
    assert lines[2].startswith(
        "speed    answer at most 9.9 tokens/s, usually two thirds of that: memory is read with 20.0"
    )


def test_an_estimate_of_no_model_is_one_line(home: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert main(["run", str(tmp_path / "x.gguf"), "--estimate"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--draft", "x"), ("--draft-layers", "2"), ("--lora", "x"), ("--session", "x")]
)
def test_what_is_not_estimated_is_refused(tiny_path: Path, capsys: Capture, option: str, value: str) -> None:
    assert main(["run", str(tiny_path), "--estimate", option, value]) == 2
    assert f"--estimate tells what the model takes by itself; leave {option} out" in capsys.readouterr().err


def test_whether_a_machine_has_the_memory() -> None:
    assert verdict(10**6).startswith("it fits: ")
    assert verdict(10**18).startswith("too large: this process may have ")


MEMORY = """
import sys, edgellm
from edgellm.machine import peak_memory
import edgellm.cli.app
with edgellm.load(sys.argv[1], n_ctx=1024, layout="file", disk_bytes=0) as model:
    ids = [(17 * i + 3) % model.n_vocab for i in range(512)]
    list(model.generate(ids, max_tokens=32))
    print(peak_memory())
"""
ESTIMATED = """
import sys
from pathlib import Path
import edgellm.cli.app
from edgellm.graph import Tuning
from edgellm.measure.estimate import estimate
from edgellm.params import RuntimeConfig
print(estimate(Path(sys.argv[1]), RuntimeConfig(n_ctx=1024, layout="file")).memory(544))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has in memory is told differently elsewhere")
def test_the_memory_of_a_real_model_is_as_estimated(smollm2: Path) -> None:
    def told(program: str) -> int:
        run = subprocess.run([sys.executable, "-c", program, str(smollm2)], capture_output=True, text=True, check=True)
        return int(run.stdout)

    # What a start compiles or measures once, for later ones, takes memory of its own.
    said, took = (min(told(program) for _ in range(2)) for program in (ESTIMATED, MEMORY))
    assert said == pytest.approx(took, rel=0.05)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """What would be loaded."""
    from edgellm.cli import models

    loaded: list[Path] = []

    def load(path: Path, *args: object) -> object:
        loaded.append(path)
        raise edgellm.UsageError("loaded")

    monkeypatch.setattr(models, "load", load)
    with open(os.devnull, encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield loaded


def test_a_folder_says_how_it_is_run(home: Path, tmp_path: Path, runs: list[Path], capsys: Capture) -> None:
    def said(folder: Path) -> str:
        assert main(["run", str(folder), "-p", "x"]) == 2
        return capsys.readouterr().err

    folder = tmp_path / "some"
    folder.mkdir()
    assert "is a folder without a model; expected a GGUF file, or a checkpoint with config.json" in said(folder)
    (folder / "config.json").write_text("{}")
    assert (
        f"{folder} is a checkpoint: edgellm convert {folder} -o MODEL.gguf makes a model of it, and edgellm run"
        in said(folder)
    )
    (folder / "a.gguf").write_bytes(b"GGUF")
    assert said(folder).endswith("error: loaded\n") and runs == [folder / "a.gguf"]
    (folder / "b.gguf").write_bytes(b"GGUF")
    assert f"{folder} holds 2 models: a.gguf, b.gguf; name one" in said(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert f"{adapter} is an adapter: edgellm run BASE --lora {adapter}" in said(adapter)


def test_a_checkpoint_is_converted_once_and_again_when_it_changes(
    home: Path, tmp_path: Path, runs: list[Path], capsys: Capture
) -> None:
    def run(*more: str) -> str:
        assert main(["run", str(tmp_path / "model"), "--convert", "-p", "x", *more]) == 2
        return capsys.readouterr().err

    checkpoints.save("qwen2", tmp_path / "model")
    said = run()
    assert f"edgellm: converting {tmp_path / 'model'} to Q8_0; `edgellm convert` makes others\n" in said
    (first,) = runs
    assert first.parent == home / "models" and first.name.startswith("model.") and first.name.endswith(".Q8_0.gguf")
    assert run() == "edgellm: error: loaded\n" and runs == [first, first]
    checkpoints.edit_json(tmp_path / "model" / "config.json", rope_theta=5e5)
    run()
    assert runs[2] != first and runs[2].is_file()
    assert main(["rm", first.name]) == 0


def test_a_quantized_checkpoint_keeps_its_types(home: Path, tmp_path: Path, runs: list[Path], capsys: Capture) -> None:
    quantize_folder(tmp_path / "model", awq(True), AWQ)
    assert main(["run", str(tmp_path / "model"), "--convert", "-p", "x"]) == 2
    assert "to the types that it has; `edgellm convert` makes others" in capsys.readouterr().err
    assert runs[0].name.endswith(".auto.gguf")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_is_no_checkpoint_is_not_converted(
    make: Callable[[Path], None], home: Path, tmp_path: Path, capsys: Capture
) -> None:
    make(tmp_path / "x")
    assert main(["run", str(tmp_path / "x"), "--convert", "-p", "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
