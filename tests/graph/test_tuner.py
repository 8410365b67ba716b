"""Settings are measured once, remembered, and change the speed of a model only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.engine import runner
from edgellm.errors import UnsupportedError
from edgellm.graph import tuner
from edgellm.graph.lowering import base
from edgellm.graph.tuning import Tuning
from edgellm.graph.weights import Kind
from edgellm.kernels.isa import choose
from edgellm.kernels.records import PREFETCHES
from edgellm.kernels.store import KernelStore
from edgellm.machine import others
from edgellm.quants import FORMATS
from tests.arch import tiny

F32, Q4_0 = Kind(FORMATS["F32"]), Kind(FORMATS["Q4_0"])


class Elsewhere:
    """Kernels that there are already, to compile which takes seconds, and beside them a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._kernels = folder, KernelStore(choose())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)


@pytest.fixture
def _busy_machine() -> None:
    """Here it is tried what becomes of one that is."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """Settings in a folder of the test, few weights to measure with, and a machine that counts as quiet."""
    monkeypatch.setattr(others, "is_too_busy", lambda cores, n_threads: False)
    monkeypatch.setattr(tuner, "WEIGHT_BYTES", 1 << 22)
    return Elsewhere(tmp_path)


def test_what_is_measured_is_remembered_for_its_format(store: Elsewhere) -> None:
    assert tuner.remembered(store, F32) is None
    measured = tuner.measure_and_remember(store, F32)
    assert measured.is_sensible()
    assert tuner.remembered(store, F32) == measured
    assert tuner.remembered(store, Q4_0) is None
    tuner.forget(store)
    assert tuner.remembered(store, F32) is None


def test_each_kind_of_weights_is_measured_by_itself(store: Elsewhere) -> None:
    """The file's names of those that were there before kinds were are the same."""
    wide, fine = Q4_0, Kind(FORMATS["Q4_0"], is_narrow=True, n_planes=2)
    for kind, cols, planes in ((wide, 2048, 1), (fine, 768, 2)):
        work = tuner._Work(store, kind, 1 << 22)
        assert {tensor.shape[1] for tensor in work.matrices} == {cols}
        assert all(tensor.shape[0] % 16 == 0 for tensor in work.matrices)
        with work.programs(Tuning(1), Tuning(1, tiles=True)) as programs:
            for program in programs:
                linears = [op for op in program._program.lowered.ops if op.kernel.name.startswith("linear")]
                assert linears and {dict(op.kernel.options)["n_planes"] for op in linears} == {planes}
    tuner.measure_and_remember(store, fine)
    assert tuner.remembered(store, fine) is not None and tuner.remembered(store, wide) is None


def test_who_waits_is_told_what_for(store: Elsewhere) -> None:
    told: list[tuple[int, int, str]] = []
    tuner.measure_and_remember(store, F32, progress=lambda *step: told.append(step))
    assert (0, 0, tuner.TASK) in told


def test_what_a_busy_machine_measured_serves_while_it_is_busy(store: Elsewhere, monkeypatch) -> None:
    busy = True
    monkeypatch.setattr(others, "is_too_busy", lambda cores, n_threads: busy)
    monkeypatch.setattr(tuner, "LOOK_AGAIN_SECONDS", 1e9)  # however long this test takes
    tuner._is_busy.cache_clear()
    measured = tuner.measure_and_remember(store, F32)
    assert tuner.remembered(store, F32) == measured
    busy = False
    assert tuner.remembered(store, F32) == measured  # we look once in a while
    tuner._is_busy.cache_clear()
    assert tuner.remembered(store, F32) is None
    measured = tuner.measure_and_remember(store, F32)
    busy = True
    tuner._is_busy.cache_clear()
    assert tuner.remembered(store, F32) == measured
    tuner.forget(store)
    assert tuner.remembered(store, F32) is None


def test_what_is_compared_has_one_team(store: Elsewhere) -> None:
    """Else another team's threads, that wait for work or wake up on a core in use, decide which setting is quicker."""
    work = tuner._Work(store, Q4_0, 1 << 22)
    with work.programs(Tuning(2), Tuning(2, tiles=True), Tuning(1)) as (first, second, alone):
        assert first.team is second.team and (first.team.n_threads, alone.team.n_threads) == (2, 1)
        for program in (first, second, alone):
            program.run(1)
            program.run(16)
        helper = first.team._helpers[1]
        assert helper is not None and helper.is_alive()
    assert not helper.is_alive()


def test_what_is_compared_takes_little_memory_beside_the_weights(store: Elsewhere) -> None:
    work = tuner._Work(store, Q4_0, 1 << 24)
    with work.programs(Tuning(1)) as (one,):
        one.run(8)
        assert len(work.matrices) > 4 and (one._products[:8] != 0).all()  # they are made, and in one place
        assert one._program.arena.nbytes < work.memory.nbytes / 100


def test_tiles_are_taken_where_they_are_clearly_quicker(store: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quicker for one token, or as quick for one and far quicker for several; whatever holds up single turns."""
    work = tuner._Work(store, Q4_0, 1 << 22)

    def decide(one: float, several: float) -> bool:
        shares = iter((one, several))

        def take_turns(candidates, n_turns):
            file, tiles = candidates
            share = next(shares)
            return [{file: 1.0, tiles: share * turn} for turn in (1.0, 2.5, 1.0)] + [{file: 3.0, tiles: share}]

        with monkeypatch.context() as patch:
            patch.setattr(tuner, "_take_turns", take_turns)
            return work.tiles_pay(Tuning(1))

    assert decide(0.9, 1.5) and decide(1.01, 0.7)
    assert not decide(1.08, 0.3) and not decide(1.0, 0.9)


def test_what_is_prefetched_of_tiles_is_what_is_clearly_quickest(store: Elsewhere, monkeypatch) -> None:
    work = tuner._Work(store, Q4_0, 1 << 22)
    usual, second = (1 << 13, "non_temporal"), (1 << 13, "both_levels")
    near, far = (1 << 13, "first_level"), (7 << 12, "first_level")
    for seconds, chosen in (
        ({near: 0.8, far: 0.9}, near), ({near: 0.99, second: 0.99}, usual), ({far: 0.5}, far), ({second: 0.7}, second),
    ):  # fmt: skip

        def turn(some, n_turns, seconds=seconds):
            usually = {one: seconds.get((one.tiles_prefetch_bytes, one.tiles_prefetch), 1.0) for one in some}
            return [usually, usually, dict.fromkeys(some, 1.0)]  # in the last one, something else held all up

        with monkeypatch.context() as patch:
            patch.setattr(tuner, "_take_turns", turn)
            found = work.prefetching_tiles(Tuning(1))
            assert (found.tiles_prefetch_bytes, found.tiles_prefetch) == chosen
            assert not found.tiles


def test_other_cores_are_measured_by_themselves(store: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start in a small container leaves no model with one thread on the whole machine."""
    monkeypatch.setattr(tuner, "usable_threads", lambda: 1)
    measured = tuner.measure_and_remember(store, F32)
    assert tuner.remembered(store, F32) == measured
    monkeypatch.setattr(tuner, "usable_threads", lambda: 64)
    assert tuner.remembered(store, F32) is None


def test_threads_that_somebody_wants_are_used_and_not_remembered(store: Elsewhere) -> None:
    measured = tuner.measure_and_remember(store, F32, n_threads=3)
    assert measured.n_threads == 3
    again = tuner.remembered(store, F32)
    assert again is not None and replace(again, n_threads=3) == measured


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"n_threads": 2}', {"n_threads": 0}, {"n_threads": 10**9},
     {"n_threads": "2"}, {"chunk_bytes": 0}, {"chunk_bytes": 1 << 40},
     {"prefetch_bytes": -1}, {"prefetch_bytes": 1 << 40}, {"prefetch_bytes": 1.5},
     {"small_batch": 0}, {"small_batch": 1000}, {"small_batch": True}, {"prefetch_bytes": "x"},
     {"tiles": 1}, {"tiles": None}, {"tiles_small_batch": 0}, {"tiles_small_batch": 33},
     {"tiles_prefetch_bytes": -1}, {"tiles_prefetch_bytes": 1 << 40}, {"tiles_prefetch_bytes": True},
     {"tiles_prefetch": 1}, {"tiles_prefetch": "none"}, {"tiles_prefetch": []}],
)  # fmt: skip
def test_what_cannot_be_used_is_measured_again(tmp_path: Path, content) -> None:
    path = tmp_path / "tuning.F32.json"
    good = {"n_threads": 2, "chunk_bytes": 1 << 19, "prefetch_bytes": 1 << 13, "small_batch": 3, "tiles": False,
            "tiles_small_batch": 16, "tiles_prefetch_bytes": 1 << 13, "tiles_prefetch": "non_temporal"}  # fmt: skip
    path.write_text(json.dumps(good))
    assert Tuning.load(path) == Tuning(2)
    path.write_text(json.dumps({name: value for name, value in good.items() if not name.startswith("tiles")}))
    assert Tuning.load(path) == Tuning(2)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(good | content).encode())
    assert Tuning.load(path) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    Tuning(2).save(tmp_path / "file" / "tuning.json")


@pytest.mark.parametrize(
    "tuning",
    [Tuning(1), Tuning(3), Tuning(2, chunk_bytes=1 << 10), Tuning(2, chunk_bytes=1 << 22), Tuning(2, prefetch_bytes=0),
     Tuning(2, prefetch_bytes=1 << 24), Tuning(2, small_batch=1), Tuning(2, small_batch=16),
     Tuning(2, tiles=True, tiles_small_batch=1), Tuning(2, tiles=True, tiles_prefetch_bytes=0, tiles_small_batch=20),
     Tuning(1, tiles=True, tiles_prefetch_bytes=1 << 20),
     *(Tuning(2, tiles=True, tiles_prefetch=what) for what in PREFETCHES)],
)  # fmt: skip
@pytest.mark.parametrize("format_name", ["F32", "Q8_0"])
def test_settings_change_no_bit(tuning: Tuning, format_name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(base, "last_level_cache", lambda: 0)  # so no cache can hold the weights
    path = tiny.llama(hidden_size=64).save(tmp_path / "tiny.gguf", format_name)
    ids = list(range(3, 50))

    def logits(settings: Tuning) -> np.ndarray:
        monkeypatch.setattr(runner, "remembered", lambda *args: settings)
        with edgellm.load(path, layout="memory" if settings.tiles else "file") as model:
            assert model.n_threads == settings.n_threads
            few = [model.logits(ids[:n])[-1] for n in (1, 2, 5, 12)]
            return np.concatenate([model.logits(ids), few])

    np.testing.assert_array_equal(logits(tuning), logits(Tuning(2)))


def test_a_file_that_cannot_be_run_is_not_measured(tmp_path: Path, monkeypatch) -> None:
    def never(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(runner, "remembered", lambda *args: None)
    monkeypatch.setattr(runner, "measure_and_remember", never)
    checkpoint = tiny.llama()
    checkpoint.tensors["blk.0.attn_q_norm.weight"] = np.ones(16, np.float32)
    with pytest.raises(UnsupportedError, match="attn_q_norm"):
        edgellm.load(checkpoint.save(tmp_path / "bad.gguf"))
