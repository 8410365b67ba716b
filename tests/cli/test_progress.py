from __future__ import annotations

import io

import pytest

from edgellm.cli import progress as module
from edgellm.cli.progress import Progress
from edgellm.cli.terminal import harmless, one_line, size_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_line_per_step_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for what in ("fetching a", "unpacking"):
            for done in range(0, 5_000_001, 1_000_000):
                progress(done, 5_000_000, what)
    assert capsys.readouterr().err == "edgellm: fetching a (5.0 MB)\nedgellm: unpacking (5.0 MB)\n"


def test_one_line_for_all_steps_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("compiling kernels") as progress:
        for done in range(4):
            progress(done, 3, f"kernel {done}")
    assert capsys.readouterr().err == "edgellm: compiling kernels (3)\n"


def test_one_line_that_renews_itself_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "100")
    with Progress() as progress:
        for done in (1_000_000, 2_000_000, 3_000_000, 4_000_000):  # resumed at the first
            progress(done, 4_000_000, "fetching \x1b")
            now[0] += 1.0
    lines = terminal.getvalue().split("\r")
    assert lines[1].rstrip() == r"fetching \x1b [######..................]  25 % of 4.0 MB"
    assert lines[3].rstrip().endswith(" 75 % of 4.0 MB, 1.0 MB/s, 1 s left")
    assert set(lines[-2]) == {" "} and lines[-1] == ""  # nothing stays
    assert "\n" not in terminal.getvalue()


def test_counts_and_unknown_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    with Progress("compiling") as progress:
        progress(2, 4, "matmul")
    assert "compiling [############............]  50 % of 4, matmul" in terminal.getvalue()
    with Progress() as progress:
        progress(1234, 0, "fetching")
    assert "\rfetching 1.2 kB\r" in terminal.getvalue().replace(" " * 16, "")


def test_a_line_makes_room_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    with Progress("compiling") as long, Progress() as short:
        long(2, 4, "matmul")
        n = len(terminal.getvalue()) - 1
        long.clear()
        long.clear()  # nothing is left to take away
        short(0, 0, "measuring")
    assert terminal.getvalue().endswith(f"matmul\r{' ' * n}\r\rmeasuring\r{' ' * len('measuring')}\r")


def test_texts_of_strangers() -> None:
    assert harmless("a\tb\nc\x1b[2Jd\x9b\r\x7f") == "a\tb\nc\\x1b[2Jd\\x9b\\x0d\\x7f"
    assert harmless("ünï 漢 👍🏽") == "ünï 漢 👍🏽"
    assert one_line("a\nb\u202e\udcffc") == "a\\nb\\u202e\\udcffc"


def test_sizes() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 98_362_432, 5e9, 7.25e13)] == [
        "0 B", "999 B", "1.0 kB", "98.4 MB", "5.0 GB", "72.5 TB",
    ]  # fmt: skip


def test_a_quiet_one_says_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as progress:
        progress(1, 2, "checking")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", range(20, 130, 7))
def test_a_line_fits_and_says_the_time_left_at_every_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    now = [100.0]
    terminal = Terminal()
    monkeypatch.setattr(module.sys, "stderr", terminal)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", str(columns))
    with Progress() as progress:
        for done in range(0, 400_000_000, 100_000_000):
            progress(done, 400_000_000, "fetching SmolLM2-135M-Instruct.Q4_1.gguf")
            now[0] += 10.0
    lines = [line.rstrip() for line in terminal.getvalue().split("\r") if line.strip()]
    assert max(map(len, lines)) < columns
    assert lines[-1].endswith("10 s left") and "75 %" in lines[-1]


def test_what_is_read_is_named_by_its_own_size(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    with Progress() as progress:
        show = module.reading(progress, tmp_path / "in.gguf")
        show(1, 269_000_000, "writing out.gguf")
    assert capsys.readouterr().err == "edgellm: reading in.gguf (269.0 MB)\n"
