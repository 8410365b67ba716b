"""The command on a real model: what the fake engine cannot show."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import REAL, beside_first_start

Run = Callable[..., subprocess.CompletedProcess]


def test_the_capital_of_france(edgellm: Run, smollm2: Path) -> None:
    args = ["--raw", "-p", "The capital of France is", "-n", "8", "--temp", "0"]
    done = edgellm("run", "smollm2-135m", *args, real=True)
    assert done.returncode == 0
    assert done.stdout.startswith(" Paris")
    assert beside_first_start(done.stderr) == ""


def test_the_same_seed_gives_the_same_text(edgellm: Run, smollm2: Path) -> None:
    answers = [edgellm("run", str(smollm2), "-p", "Hi", "-n", "12", "--seed", seed, real=True).stdout for seed in "112"]
    assert answers[0] == answers[1] != answers[2]


def test_bench_and_info(edgellm: Run, smollm2: Path) -> None:
    args = ["-p", "16", "-n", "4", "-d", "70", "-r", "1", "-t", "1", "--layout", "file", "--profile", "--json"]
    result = json.loads(edgellm("bench", str(smollm2), *args, real=True).stdout)
    assert result["prefill_tokens_per_second"] > 0
    assert result["decode_tokens_per_second"] > 0
    assert 0 < result["prefill_share_of_multiply_limit"] < 1.2
    assert 0 < result["decode_share_of_read_limit"] < 1.2
    rows = {row["name"]: row for row in result["profile"]["decode"]["rows"]}
    assert rows["linear_decode.Q4_1"]["count"] == 30 * 7
    assert rows["linear_decode.Q8_0.2"]["macs"] == 49152 * 576
    shown = edgellm("info", "smollm2-135m", real=True).stdout
    assert re.search(r"token_embd.weight +49152 x 576 +Q8_0", shown)
    assert "total 134,515,008 weights" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_while_a_long_prompt_is_read(smollm2: Path) -> None:
    process = subprocess.Popen(
        [*REAL, "run", str(smollm2), "-t", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"word " * 7000)
    process.stdin.close()
    process.stdin = None
    time.sleep(2)
    assert process.poll() is None, "the prompt was read faster than this test expects: make it longer"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out.strip()) == (130, b"")
    assert time.monotonic() - begin < 5


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_a_long_prompt_on_a_terminal_says_how_far_it_is_and_can_be_stopped(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pexpect")
    pytest.importorskip("pyte")
    from tools.terminal import Terminal

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "long.txt").write_text("word " * 7000)
    terminal = Terminal([*REAL, "run", str(smollm2), "--no-save"], columns=60, seconds=90)
    terminal.prompt()
    terminal.type(f"/read {tmp_path}/long.txt\r")
    terminal.wait_for(" tokens, sent with your next")
    terminal.prompt()
    terminal.type("Sum this up.\r")
    terminal.wait_for(lambda text: re.search(r"reading the prompt .* [1-9]\d? %.* \d+ s left", text))
    begin = time.monotonic()
    terminal.type("\x03")
    terminal.wait_for("stopped before the answer began")
    assert time.monotonic() - begin < 5
    terminal.prompt()
    terminal.type("/bye\r")
    assert terminal.end() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals of POSIX")
def test_a_chat(smollm2: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(
        REAL[0], [*REAL[1:], "run", str(smollm2), "--stats", "--seed", "1", "--no-save"],
        encoding="utf-8", timeout=90, dimensions=(50, 200), echo=False, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    child.expect_exact(">>> ")
    child.sendline("What is the capital of France?")
    child.expect(r"Paris")
    child.expect(r"\(0 reused\)")
    child.expect_exact(">>> ")
    child.sendline("Tell me a very long story.")
    child.expect(r"\w+ \w+ \w+")
    child.sendintr()
    child.expect(r"prompt (\d+) tokens \((\d+) reused\)")
    n_prompt, n_reused = map(int, child.match.groups())
    assert 0 < n_reused < n_prompt  # the first turn was still in the cache
    child.expect_exact(">>> ")
    child.sendline("/bye")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
