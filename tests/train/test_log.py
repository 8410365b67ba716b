"""The log of a run, and its event files for TensorBoard."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from edgellm.errors import FileProblem
from edgellm.train.log import Log, as_entry, read_log
from edgellm.train.loop import Step
from edgellm.train.tensorboard import EventFile, _checksum, is_installed


def step(number: int, **more) -> Step:
    return Step(number, 10, number / 5, loss=1 / number, n_tokens=32, seconds=2.0 * number, **more)


def test_a_line_for_every_step(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.write(as_entry(step(1)))
    log.write(as_entry(step(2, validation_loss=0.25)))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()  # before it is closed
    log.close()
    first, second = map(json.loads, lines)
    assert first.pop("memory") > 1_000_000
    assert first == {"step": 1, "n_steps": 10, "epoch": 0.2, "loss": 1.0, "n_tokens": 32, "seconds": 2.0}
    assert second["validation_loss"] == 0.25
    assert read_log(tmp_path / "log.jsonl")[1] == second


def test_a_new_run_begins_a_new_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 9}\n')
    Log(path).close()
    assert read_log(path) == [] == read_log(tmp_path / "none.jsonl")


def test_a_resumed_run_does_later_steps_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 2, "x": 5}\n{"step": 3}\n{"step": 4, "lo')
    log = Log(path, resumed_at=2)
    log.write({"step": 3, "loss": 1})
    log.close()
    assert read_log(path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 2, "x": 5}, {"step": 3, "loss": 1}]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("line", ["", "5", "[]", "{}", '{"step": "1"}', '{"step": true}', "\udcff", "[" * 100_000])
def test_lines_that_are_no_entries_are_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode(errors="surrogateescape") + b'\n{"step": 2}\n')
    assert [entry["step"] for entry in read_log(path)] == [1, 2]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem, match=r"file/log\.jsonl cannot be written"):
        Log(tmp_path / "file" / "log.jsonl")
    log = Log(tmp_path / "log.jsonl")
    log.close()
    if os.path.exists("/dev/full"):
        log._file = open("/dev/full", "w")  # noqa: SIM115  # what a full disk says
        with pytest.raises(FileProblem, match=r"log\.jsonl cannot be written: No space left on device"):
            log.write({"step": 1})
        log.close()


def test_checksums() -> None:
    """CRC-32C of RFC 3720, appendix B.4, with the turn and the number that records add."""
    for data, crc in (
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ):
        masked = struct.unpack("<I", _checksum(data))[0]
        turned = (masked - 0xA282EAD8) & 0xFFFFFFFF
        assert (turned << 15 | turned >> 17) & 0xFFFFFFFF == crc


def records(path: Path) -> list[bytes]:
    raw, found = path.read_bytes(), []
    while raw:
        (n,) = struct.unpack_from("<Q", raw)
        assert raw[8:12] == _checksum(raw[:8]) and raw[12 + n : 16 + n] == _checksum(raw[12 : 12 + n])
        found.append(raw[12 : 12 + n])
        raw = raw[16 + n :]
    return found


def test_an_event_file_is_records_of_numbers(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tb", resumed_at=300)
    events.write({"step": 301, "loss": 0.5, "seconds": 9})
    events.close()
    (path,) = (tmp_path / "tb").iterdir()
    version, start, numbers = records(path)
    assert version[9:] == b"\x1a\x0dbrain.Event:2"
    assert start[9:] == b"\x10\xad\x02\x3a\x02\x08\x01"  # step 301, a session that starts
    value = b"\x0a\x0aloss/train\x15" + struct.pack("<f", 0.5)
    assert numbers[9:] == b"\x10\xad\x02\x2a" + bytes([len(value) + 2]) + b"\x0a" + bytes([len(value)]) + value


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard")
    first = EventFile(tmp_path)
    for number in range(1, 8):
        first.write({"step": number, "loss": 1 / number, "learning_rate": 1e-4})
    first.close()
    rest = EventFile(tmp_path, resumed_at=5)
    rest.write({"step": 6, "loss": 66.0, "validation_loss": 0.125})
    rest.close()
    found = module.EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(event.step, round(event.value, 4)) for event in found.Scalars("loss/train")] == [
        (1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25), (5, 0.2), (6, 66.0),
    ]  # fmt: skip
    assert found.Scalars("loss/validation")[0].value == 0.125


def test_whether_tensorboard_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.train.tensorboard.find_spec", lambda name: object() if name == "tensorboard" else None)
    assert is_installed()
    monkeypatch.setattr("edgellm.train.tensorboard.find_spec", lambda name: None)
    assert not is_installed()


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(FileProblem, match=r"log\.jsonl cannot be read: "):
        Log(tmp_path / "log.jsonl", resumed_at=3)


def test_lines_that_say_nothing_of_a_step_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        '{"step": "2"}',
        "[3]",
        "5",
        '{"step": 6, "figures": 7}',
        '{"step": 6, "figures": {"margin": "8"}}',
        '{"st',
    ]
    path.write_text("\n".join([*lines, '{"step": 9, "figures": {"margin": 0.5}}']))
    assert read_log(path) == [{"step": 9, "figures": {"margin": 0.5}}]
