"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is one safetensors file: the weights, the optimizer's moments, and in its metadata how far the run is and
what it is a run of. Nothing else is needed, because all random choices and the order of the data depend on the seed
and the step alone. It is written beside its name and renamed, so whatever happens there is the one before or this
one, whole. The last few are kept, and the one with the lowest validation loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FileProblem, FormatError, UsageError, shown
from edgellm.files import check_room
from edgellm.formats.safetensors import read_safetensors, write_safetensors_file
from edgellm.formats.strict_json import parse_object
from edgellm.quants import FORMATS
from edgellm.train.optimizer import AdamW

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.formats.mapped import Contents

_VERSION, _UNSEALED = 2, 1  # the one before had no digest
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_STATE = "edgellm.training"


@dataclass
class State:
    """How far a run is.

    step:      updates so far; it also says which batch comes next.
    n_tokens:  that went through the model, and `seconds` in which.
    best_step, best_loss: of the lowest validation loss so far; None before the first.
    n_worse:   validations since then.
    validated: the step of the last validation, -1 before the first.
    """

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    n_worse: int = 0
    validated: int = -1


class Checkpoints:
    """Those of one run, in a folder of their own.

    identity:  what makes this run what it is: settings, and digests of the data and the model. A checkpoint of
               another identity is refused. Values are what JSON holds.
    keep:      how many of the last stay.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int = 2) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(dict(identity)))
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps whose checkpoints are there, in order.

        Raises FileProblem for a folder that cannot be looked into: to find none there would be to begin anew.
        """
        try:
            names = [_NAME.fullmatch(name) for name in os.listdir(self.folder)]
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise FileProblem(f"{self.folder} cannot be read: {problem.strerror}") from None
        return sorted(int(name[1]) for name in names if name)

    def check_room(self, optimizer: AdamW, n_saves: int) -> None:
        """Raise FileProblem when the disk has no room for what so many saves leave at once, before any work is done.

        The best one is not counted: it may be one of the last.
        """
        n_more = min(n_saves, max(1, self.keep + 1 - len(self.steps())))  # one is written before another goes
        n_bytes = sum(array.nbytes for _, array in _arrays(optimizer))
        try:
            check_room(self.folder, n_more * n_bytes)
        except FileProblem as problem:
            less = f"; keep_checkpoints is {self.keep}, and a lower one takes less" if n_more > 1 else ""
            raise FileProblem(f"{problem}{less}") from None

    def save(self, state: State, optimizer: AdamW) -> Path:
        """Write the checkpoint of this step, then remove those that are too many.

        Raises FileProblem when it cannot be written; those that are there stay then.
        """
        path = self._path(state.step)
        described = {"version": _VERSION, "state": asdict(state), "run": self.identity}
        described["digest"] = _digest(described, _arrays(optimizer))
        f32 = FORMATS["F32"]
        tensors = [(name, array.shape, f32, array) for name, array in _arrays(optimizer)]
        try:
            write_safetensors_file(path, tensors, {_STATE: json.dumps(described)})
        except OSError as problem:
            raise self._not_written(path, problem) from None
        self._thin_out({state.best_step})
        return path

    def restore(self, optimizer: AdamW, step: int | None = None) -> State:
        """Set weights and moments as they were after a step, by default the last that was kept.

        Raises UsageError when there is none, or it is of another run; FileProblem or FormatError when it is broken.
        """
        contents, state = self._read(step, self._instead)
        arrays = dict(_arrays(optimizer))
        _check_tensors(contents, arrays)
        for name, array in arrays.items():
            array[...] = _view(contents, name)
        optimizer.step = state.step
        return state

    def restore_weights(self, parameters: Mapping[str, NDArray[np.float32]], step: int) -> None:
        """Set the weights alone. Raises as `restore` does."""
        contents, _ = self._read(step, lambda step: "without patience, the weights of the last step are taken")
        for name, array in parameters.items():
            array[...] = _view(contents, f"weights/{name}")

    def _read(self, step: int | None, instead: Callable[[int], str]) -> tuple[Contents, State]:
        """instead: what to do without the checkpoint of a step, where it is broken."""
        steps = self.steps()
        if not steps:
            raise UsageError(f"{self.folder} holds no checkpoint to go on from", parameter="resume")
        step = steps[-1] if step is None else step
        path = self._path(step)
        try:
            contents = read_safetensors(path)
        except FileProblem as problem:
            raise type(problem)(f"{problem}; {instead(step)}", parameter="resume") from None
        try:
            found = parse_object(np.frombuffer(contents.metadata.get(_STATE, "null").encode(), np.uint8))
            state = _state_of(found)
            if state.step != step:
                raise FormatError(f"by its name it is of step {step}, and it holds step {state.step}")
            _check_digest(found, contents)
        except FileProblem as problem:
            raise type(problem)(
                f"{path} is no checkpoint that this version can read: {problem}; {instead(step)}", parameter="resume"
            ) from None
        self._refuse_other_runs(found["run"])
        return contents, state

    def _instead(self, step: int) -> str:
        """What a run can go on from without the checkpoint of a step."""
        if before := [other for other in self.steps() if other < step]:
            return f"remove it, and resume goes on from step {before[-1]}"
        return "there is none before it, so begin anew in another folder"

    def _refuse_other_runs(self, theirs: Mapping[str, Any]) -> None:
        names = [name for name in {**theirs, **self.identity} if theirs.get(name) != self.identity.get(name)]
        if names:
            told = ", ".join(_difference(name, theirs.get(name), self.identity.get(name)) for name in names)
            raise UsageError(
                f"{told}: a run goes on with the settings that it began with; repeat those, or begin another in a "
                "new folder",
                parameter=names[0],
            )

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _thin_out(self, spared: set[int | None]) -> None:
        for step in self.steps()[: -self.keep]:
            if step not in spared:
                with contextlib.suppress(OSError):  # it is in nobody's way
                    self._path(step).unlink()

    def _not_written(self, path: Path, problem: OSError) -> FileProblem:
        steps = self.steps()
        kept = f"; the checkpoint of step {steps[-1]} is kept, and resume goes on from there" if steps else ""
        return FileProblem(f"{path} cannot be written: {problem.strerror}{kept}", parameter="resume")


def _arrays(optimizer: AdamW) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """All that a run changes, under the names that a checkpoint has for them."""
    for kind, arrays in (
        ("weights", optimizer.parameters),
        ("means", optimizer.means),
        ("squares", optimizer.squares),
    ):
        yield from ((f"{kind}/{name}", array) for name, array in arrays.items())


def _digest(described: Mapping[str, Any], arrays: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """The SHA-256 of what a checkpoint says and of its numbers, by the names of these."""
    found = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, array in sorted(arrays, key=lambda named: named[0]):
        found.update(f"{name} {list(array.shape)}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _check_digest(found: Mapping[str, Any], contents: Contents) -> None:
    """Raise FormatError for a file that is not as it was written."""
    if found["version"] == _UNSEALED and "digest" not in found:
        return
    described = {name: value for name, value in found.items() if name != "digest"}
    arrays = ((name, _view(contents, name)) for name, t in contents.tensors.items() if t.format.name == "F32")
    if found.get("digest") != _digest(described, arrays):
        raise FormatError("it is damaged, for what it holds is not what was written")


def _check_tensors(contents: Contents, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """A file may have been made by anybody: what it holds must be what this run has."""
    theirs = {name: ("F32", tensor.shape) if tensor.format.name == "F32" else () for name, tensor in
              contents.tensors.items()} | dict.fromkeys(contents.others, ())  # fmt: skip
    ours = {name: ("F32", array.shape) for name, array in arrays.items()}
    for name in {**ours, **theirs}:
        if theirs.get(name) != ours.get(name):
            raise FormatError(f"the checkpoint holds other weights than this run: {name!r:.90} differs")


def _view(contents: Contents, name: str) -> NDArray[np.float32]:
    tensor = contents.tensors[name]
    return tensor.raw.reshape(-1).view(np.float32).reshape(tensor.shape)


def _state_of(found: Mapping[str, Any]) -> State:
    if found.get("version") not in (_VERSION, _UNSEALED) or not isinstance(found.get("run"), dict):
        raise FormatError("it does not say what run it is of")
    state = found.get("state")
    if not isinstance(state, dict) or state.keys() != {field.name for field in fields(State)}:
        raise FormatError("it does not say how far the run is")
    counts = ("step", "n_tokens", "n_worse") + (("best_step",) if state["best_step"] is not None else ())
    numbers = ("seconds",) + (("best_loss",) if state["best_loss"] is not None else ())
    if type(state["validated"]) is not int or not all(type(state[n]) is int and state[n] >= 0 for n in counts):
        raise FormatError("one of its counts is no count")
    if not all(type(state[name]) in (int, float) for name in numbers):
        raise FormatError("one of its numbers is no number")
    return State(**state)


def _difference(name: str, theirs: Any, ours: Any) -> str:
    if name.endswith("digest"):
        return f"the {name.removesuffix('_digest').replace('_', ' ')} is another than at the beginning"
    return f"{name} is {shown(ours)} and was {shown(theirs)}"
