"""Checkpoints: a resumed run is the run that was never stopped, and whatever happens one of them is whole."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, FileProblem, FormatError, UsageError
from edgellm.formats.safetensors import write_safetensors_file
from edgellm.quants import FORMATS
from edgellm.train.checkpoint import Checkpoints, State
from edgellm.train.config import TrainConfig
from edgellm.train.loop import Run, Step
from edgellm.train.optimizer import AdamW
from edgellm.train.session import Session
from tests.train.bigram import Bigram, Counting

CONFIG = TrainConfig(learning_rate=0.05, epochs=4, checkpoint_every=5, eval_every=4, warmup=0.2)
IDENTITY = {"rank": 8, "betas": (0.9, 0.999), "data_digest": "ab", "model_digest": "cd"}
ROOT = Path(__file__).parents[2]


def a_run(folder: Path | None, watch=lambda step: None) -> Run:
    checkpoints = Checkpoints(folder, IDENTITY) if folder else None
    return Run(Bigram(), Counting(), CONFIG, checkpoints, watch)


def weights_of(run: Run) -> list[bytes]:
    return [array.tobytes() for array in run.learner.parameters.values()]


@pytest.fixture(scope="module")
def straight() -> tuple[dict[int, tuple], list[bytes]]:
    """What every step of a run that is never stopped was like, and its weights at the end."""
    seen: dict[int, tuple] = {}
    run = a_run(None, lambda step: seen.update({step.step: numbers_of(step)}))
    run.go()
    return seen, weights_of(run)


def numbers_of(step: Step) -> tuple:
    return step.loss, step.gradient_norm, step.learning_rate, step.n_tokens, step.validation_loss, step.epoch


@pytest.mark.parametrize("stop_at", [0, 1, 4, 5, 9, 20, 23, 24])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, straight, stop_at: int) -> None:
    seen: dict[int, tuple] = {}
    first = a_run(tmp_path, lambda step: seen.update({step.step: numbers_of(step)}) or step.step == stop_at)
    first.go()
    rest = a_run(tmp_path, lambda step: seen.update({step.step: numbers_of(step)}))
    rest.resume()
    assert rest.state.step == stop_at
    rest.go()
    assert (seen, weights_of(rest)) == straight
    assert (rest.state.best_loss, rest.state.n_tokens) == (first_best(straight), sum(s[3] for s in seen.values()))


def first_best(straight) -> float:
    return min(numbers[4] for numbers in straight[0].values() if numbers[4] is not None)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_any_moment_loses_little(tmp_path: Path, straight, seed: int) -> None:
    """Killed again and again at random moments, it still gets to the same weights, and never begins anew."""
    chance = random.Random(seed)
    told = 0
    for attempt in range(10):
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.train.killed_run", str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        begun_at = int(program.stdout.readline().split()[1])
        assert begun_at >= (told - 1) // CONFIG.checkpoint_every * CONFIG.checkpoint_every
        for line in program.stdout:
            told = int(line.split()[1])
            if attempt < 9 and chance.random() < 0.25:
                time.sleep(chance.random() * 0.01)
                program.kill()
                break
        program.communicate()
        if program.returncode == 0:
            break
    assert program.returncode == 0
    run = a_run(tmp_path)
    run.resume()
    assert (run.state.step, weights_of(run)) == (24, straight[1])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"rank": 16}, "rank is 16 and was 8: a run goes on with the settings that it began with"),
        ({"betas": (0.9, 0.99)}, "betas is [0.9, 0.99] and was [0.9, 0.999]: "),
        ({"data_digest": "xy"}, "the data is another than at the beginning: "),
        ({"model_digest": "xy", "seed": 3}, "the model is another than at the beginning, seed is 3 and was None: "),
    ],
)
def test_a_run_with_other_settings_is_refused(tmp_path: Path, other, text: str) -> None:
    run = a_run(tmp_path, lambda step: step.step == 5)
    run.go()
    learner = Bigram()
    before = learner.parameters["table"].copy()
    changed = Run(learner, Counting(), CONFIG, Checkpoints(tmp_path, IDENTITY | other))
    with pytest.raises(UsageError) as error:
        changed.resume()
    assert str(error.value).startswith(text) and error.value.parameter == next(iter(other))
    np.testing.assert_array_equal(learner.parameters["table"], before)


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no checkpoint to go on from"):
        a_run(tmp_path / "new").resume()


def test_a_folder_that_cannot_be_looked_into_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To find nothing there would be to begin anew, over what is there."""

    def listdir(folder: object) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    saved(tmp_path / "run" / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        for resume in (False, True):
            with pytest.raises(FileProblem, match="checkpoints cannot be read: Permission denied"):
                Session(tmp_path / "run", resume=resume).check()
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "checkpoints").write_text("no folder")
    with pytest.raises(FileProblem, match="checkpoints cannot be read: "):
        Session(tmp_path / "file", resume=True).check()


def saved(folder: Path) -> Path:
    return Checkpoints(folder, IDENTITY).save(State(step=3), AdamW(Bigram().parameters))


@pytest.mark.parametrize("shape", [(11, 12), (12, 12, 1), (144,)])
def test_weights_of_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    saved(tmp_path)
    learner = Bigram()
    learner.parameters["table"] = np.zeros(shape, np.float32)
    with pytest.raises(FormatError, match="holds other weights than this run: 'weights/table' differs"):
        Run(learner, Counting(), CONFIG, Checkpoints(tmp_path, IDENTITY)).resume()


def rewritten(path: Path, **changes) -> None:
    state = {
        "step": 3,
        "n_tokens": 0,
        "seconds": 0,
        "best_step": None,
        "best_loss": None,
        "n_worse": 0,
        "validated": -1,
    }
    described = {"version": 1, "state": state, "run": json.loads(json.dumps(IDENTITY))} | changes
    tensors = [
        (f"{kind}/{name}", array.shape, FORMATS["F32"], array)
        for kind in ("weights", "means", "squares")
        for name, array in Bigram().parameters.items()
    ]
    write_safetensors_file(path, tensors, {"edgellm.training": json.dumps(described)})


GOOD = {"step": 3, "n_tokens": 0, "seconds": 0, "best_step": None, "best_loss": None, "n_worse": 0, "validated": -1}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3}, {"run": None}, {"run": [1]}, {"state": None}, {"state": {"step": 3}},
        *({"state": GOOD | {name: value}} for name in GOOD for value in ("x", [], {}, True, 1.5j, -5, None, 2.5)
          if not (name in ("seconds", "best_loss") and value in (-5, 2.5))
          and not (name in ("best_step", "best_loss") and value is None)
          and not (name == "validated" and value == -5)
          and not isinstance(value, complex)),
    ],
    ids=str,
)  # fmt: skip
def test_a_state_that_cannot_be(tmp_path: Path, changes) -> None:
    path = saved(tmp_path)
    rewritten(path)
    a_run(tmp_path).resume()  # the rest of it is right
    rewritten(path, **changes)
    with pytest.raises(FormatError, match="is no checkpoint that this version can read"):
        a_run(tmp_path).resume()


def test_numbers_that_a_disk_has_changed_are_refused(tmp_path: Path) -> None:
    """By whatever bit: silently, the run would come to other weights."""
    saved(tmp_path)
    path = Checkpoints(tmp_path, IDENTITY).save(State(step=5), AdamW(Bigram().parameters))
    raw = path.read_bytes()
    begin = int.from_bytes(raw[:8], "little") + 8
    learner = Bigram()
    before = learner.parameters["table"].copy()
    for at in (begin, (begin + len(raw)) // 2, len(raw) - 1):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        with pytest.raises(FormatError, match=r"it is damaged, .*; remove it, and resume goes on from step 3$"):
            Run(learner, Counting(), CONFIG, Checkpoints(tmp_path, IDENTITY)).resume()
    np.testing.assert_array_equal(learner.parameters["table"], before)
    path.write_bytes(raw)
    a_run(tmp_path).resume()


def test_a_state_that_was_changed_is_refused(tmp_path: Path) -> None:
    """The metadata count too: another best step would take other weights in the end."""
    path = saved(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(rb"\"n_worse\": 0", rb"\"n_worse\": 2"))
    assert path.read_bytes() != raw
    with pytest.raises(FormatError, match=r"it is damaged, .*; there is none before it, so begin anew"):
        a_run(tmp_path).resume()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:50], lambda raw: b""])
def test_a_checkpoint_that_is_cut_off_says_what_to_do(tmp_path: Path, damage) -> None:
    saved(tmp_path)
    path = Checkpoints(tmp_path, IDENTITY).save(State(step=5), AdamW(Bigram().parameters))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=r"remove it, and resume goes on from step 3$"):
        a_run(tmp_path).resume()
    path.unlink()
    run = a_run(tmp_path)
    run.resume()
    assert run.state.step == 3


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path) -> None:
    saved(tmp_path).rename(tmp_path / "step-00000009.safetensors")
    with pytest.raises(FormatError, match="by its name it is of step 9, and it holds step 3"):
        a_run(tmp_path).resume()


def test_the_best_weights_are_gone(tmp_path: Path) -> None:
    """A run that would take them in the end says how to have those of its last step."""
    run = a_run(tmp_path, lambda step: step.step == 5)
    run.go()
    with pytest.raises(FileProblem, match="does not exist; without patience, the weights of the last step are taken"):
        Checkpoints(tmp_path, IDENTITY).restore_weights(run.learner.parameters, 2)


@given(st.data())
def test_damaged_files_are_refused_or_right(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = saved(folder)
    raw = bytearray(path.read_bytes())
    header = int.from_bytes(raw[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    try:
        a_run(folder).resume()
    except EdgellmError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: int) -> None:
    real = os.fsync
    full = [False]

    def fsync(handle: int) -> None:
        if full[0]:
            raise OSError(problem, os.strerror(problem))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    run = a_run(tmp_path, lambda step: full.__setitem__(0, step.step > 7))
    with pytest.raises(FileProblem) as error:
        run.go()
    kept = Checkpoints(tmp_path, IDENTITY).steps()[-1]
    path = tmp_path / "step-00000008.safetensors"
    assert str(error.value) == (
        f"{path} cannot be written: {os.strerror(problem)}; the checkpoint of step {kept} is kept, and resume goes "
        "on from there"
    )
    assert kept == 5 and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """With a true limit of the system: what is there stays, nothing half-written does, one line tells."""
    saved(tmp_path)
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from tests.train.test_checkpoint import saved, Path\n"
        "from edgellm.errors import FileProblem\n"
        "try:\n    saved(Path(sys.argv[1]))\nexcept FileProblem as error:\n    print(error)\n"
    )
    # -B: what Python keeps of the modules that it imports would be cut off as well, and fail in every later process.
    command = [sys.executable, "-B", "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.count("\n") == 1 and "File too large; the checkpoint of step 3 is kept" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003.safetensors"]
    a_run(tmp_path).resume()
