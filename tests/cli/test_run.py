from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.params import SamplingParams
from tests.spending import once_within

from .conftest import FAKE

Run = Callable[..., subprocess.CompletedProcess]


def test_only_the_answer_is_on_stdout(edgellm: Run, model: str) -> None:
    done = edgellm("run", model, "-p", "Hi")
    assert done.returncode == 0
    assert done.stdout == "heard 'Hi' in 1 messages\n"
    assert done.stderr == "edgellm: compiling kernels (3)\n"


def test_the_prompt_may_come_from_standard_input(edgellm: Run, model: str) -> None:
    for args in ([], ["-p", "-"]):
        assert edgellm("run", model, *args, stdin="Hällo\n").stdout == "heard 'Hällo' in 1 messages\n"
    both = edgellm("run", model, "-p", "Sum up:", stdin="the text\n")
    assert both.stdout == "heard 'Sum up:\\n\\nthe text' in 1 messages\n"


def test_the_prompt_may_stand_behind_the_model(edgellm: Run, model: str) -> None:
    assert edgellm("run", model, "Why is it so?").stdout == "heard 'Why is it so?' in 1 messages\n"
    assert edgellm("run", model, "Why", "is", "it").stdout == "heard 'Why is it' in 1 messages\n"
    piped = edgellm("run", model, "Sum up:", stdin="the text\n")
    assert piped.stdout == "heard 'Sum up:\\n\\nthe text' in 1 messages\n"
    assert edgellm("run", model, "-", stdin="all of it").stdout == "heard 'all of it' in 1 messages\n"
    done = edgellm("run", model, "one", "-p", "two")
    assert done.returncode == 2 and "the prompt is given twice" in done.stderr


def test_what_is_wrong_is_said_before_a_model_is_fetched(edgellm: Run, home: object, tmp_path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    commands = [["run", "smollm2-135m"], ["eval", "perplexity", "smollm2-135m", "-f", "bad.txt"],
                ["eval", "kl", "smollm2-135m", "--base", "gemma3-270m", "-f", "none.txt"],
                ["imatrix", "smollm2-135m", "-f", "bad.txt", "-o", "out"],
                ["quantize", "smollm2-135m", "out.gguf", "Q4_0", "--report", "-f", "bad.txt"],
                ["quantize", "smollm2-135m", "out.gguf", "Q4_0", "-f", "bad.txt"]]  # fmt: skip
    for words in commands:
        done = edgellm(*words, stdin=b"\xff", real=True, cwd=tmp_path)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1 and "pulling" not in done.stderr, words
    assert not (tmp_path / "home" / "models").exists()


def test_an_answer_in_a_pipe_imports_nothing_of_the_chat(model: str) -> None:
    code = (
        "import atexit, runpy, sys; sys.argv = sys.argv[1:];"
        "heavy = {'rich', 'prompt_toolkit', 'pygments', 'edgellm.cli.chat'};"
        "atexit.register(lambda: print(*sorted(heavy & set(sys.modules))));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )  # fmt: skip
    for options in ([], ["--raw"]):
        command = [sys.executable, "-c", code, FAKE[1], "run", model, "-p", "Hi", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.endswith("\n\n"), done.stdout  # the second line is what was imported


def test_nothing_to_answer(edgellm: Run, model: str) -> None:
    for args in ([], ["-p", ""], ["-p", "-"]):
        done = edgellm("run", model, *args, stdin="")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("edgellm: error: there is nothing to answer")


def test_standard_input_that_is_no_text(edgellm: Run, model: str) -> None:
    done = edgellm("run", model, stdin=b"good \xff bad")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "edgellm: error: standard input is not valid UTF-8: byte 0xff at offset 5\n"


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are always text there")
def test_a_prompt_that_is_no_text(edgellm: Run, model: str) -> None:
    done = edgellm("run", model, "-p", os.fsdecode(b"\xff"))
    assert done.returncode == 2
    assert done.stderr == "edgellm: error: the text of -p is not valid UTF-8\n"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")
def test_closed_standard_streams(model: str) -> None:
    command = " ".join([*FAKE, "run", model, "-p", "Hi"])
    done = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "heard 'Hi' in 1 messages\n")


def test_system_and_raw(edgellm: Run, model: str, base_model: str) -> None:
    done = edgellm("run", model, "-p", "prompt", "--system", "Be kind")
    assert done.stdout == "<system> Be kind\n<user> prompt\n"
    assert edgellm("run", model, "--raw", "-p", "prompt").stdout == "prompt\n"
    for args in ([model, "--raw"], [base_model]):
        done = edgellm("run", *args, "-p", "x", "--system", "Be kind")
        assert done.returncode == 2
        assert "--system cannot be used: " in done.stderr


def test_a_base_model_says_so_once_and_continues_text(edgellm: Run, base_model: str) -> None:
    done = edgellm("run", base_model, "-p", "prompt")
    assert done.stdout == "prompt\n"
    assert done.stderr.count("base.gguf has no chat template (a base model): it continues your text") == 1
    assert "template" not in edgellm("run", base_model, "--raw", "-p", "x").stderr


def test_verbose_names_the_template(edgellm: Run, model: str) -> None:
    assert "chat template: the file's own" in edgellm("run", model, "-v", "-p", "x").stderr


def test_sampling_options_arrive_and_defaults_are_those_of_params(edgellm: Run, model: str) -> None:
    assert edgellm("run", model, "-p", "sampling").stdout == f"{SamplingParams()!r}\n"
    options = ["-n", "5", "--temp", "0.5", "--top-k", "7", "--top-p", "0.8", "--min-p", "0.1"]
    options += ["--repeat-penalty", "1.2", "--seed", "3"]
    expected = SamplingParams(0.5, 7, 0.8, 0.1, 1.2, seed=3, max_tokens=5)
    assert edgellm("run", model, "-p", "sampling", *options).stdout == f"{expected!r}\n"


def test_every_sampling_option_arrives(edgellm: Run, model: str) -> None:
    options = {
        "--typical": ("typical_p", 0.9), "--top-n-sigma": ("top_n_sigma", 1.5),
        "--xtc-probability": ("xtc_probability", 0.5), "--xtc-threshold": ("xtc_threshold", 0.2),
        "--dynatemp-range": ("dynatemp_range", 0.4),
        "--dynatemp-exp": ("dynatemp_exponent", 2.0), "--adaptive-target": ("adaptive_target", 0.3),
        "--adaptive-decay": ("adaptive_decay", 0.5), "--repeat-last-n": ("repeat_last_n", -1),
        "--presence-penalty": ("presence_penalty", -0.5), "--frequency-penalty": ("frequency_penalty", 0.25),
        "--dry-multiplier": ("dry_multiplier", 0.8), "--dry-base": ("dry_base", 2.0),
        "--dry-allowed-length": ("dry_allowed_length", 3), "--dry-penalty-last-n": ("dry_penalty_last_n", 100),
        "--mirostat-ent": ("mirostat_tau", 4.0), "--mirostat-lr": ("mirostat_eta", 0.2), "--seed": ("seed", 7),
    }  # fmt: skip
    words = [word for flag, (_, value) in options.items() for word in (flag, str(value))]
    words += [
        "--stop",
        "a\nb",
        "--stop",
        "c",
        "--ban",
        "d",
        "--dry-sequence-breaker",
        "e",
        "-l",
        "5+1.5",
        "-l",
        "6-inf",
    ]
    words += ["--samplers", "xtc;typical;temp;penalties;dry;top-n-sigma;top_k;adaptive-p"]
    expected = SamplingParams(
        **dict(options.values()), stop=["a\nb", "c"], banned_strings="d", dry_sequence_breakers=["e"],
        logit_bias={5: 1.5, 6: -math.inf},
        samplers=["xtc", "typ_p", "temperature", "penalties", "dry", "top_n_sigma", "top_k", "adaptive_p"],
    )  # fmt: skip
    assert edgellm("run", model, "-p", "sampling", *words).stdout == f"{expected!r}\n"
    done = edgellm("run", model, "-p", "sampling", "--mirostat", "2", "--dry-sequence-breaker", "none")
    assert done.stdout == f"{SamplingParams(mirostat=2, dry_sequence_breakers=[])!r}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--samplers", "topk"],
            "--samplers holds 'topk'; expected some of penalties, dry, top_n_sigma, top_k, typ_p,",
        ),
        (["--stop", ""], "--stop holds ''; expected texts (str) of at least one character"),
        (["--ban", ""], "--ban holds ''; expected texts (str) of at least one character"),
        (["-l", "the"], "-l/--logit-bias is 'the'; expected a token id, a sign and a number, such as 15043+1 or"),
        (["--logit-bias", "5+inf"], "-l/--logit-bias[5] is inf; expected a finite number"),
        (["--mirostat", "1"], "--mirostat is 1; expected one of 0, 2"),
        (
            ["--typical", "0.5", "--samplers", "top_k"],
            "--typical is 0.5, but samplers has no typ_p; add it there, or leave",
        ),
        (["--mirostat", "2", "--temp", "0"], "--mirostat is 2, but temperature is 0, which always takes the likeliest"),
    ],
)
def test_sampling_options_that_cannot_work(edgellm: Run, words: list[str], line: str) -> None:
    """Said before a model is looked for."""
    done = edgellm("run", "no-such-model", "-p", "x", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"edgellm: error: {line}") and done.stderr.count("\n") == 1


def test_schemas_and_grammars_are_files_or_typed(edgellm: Run, model: str, tmp_path: Path) -> None:
    schema, grammar = '{"type": "object"}', 'root ::= "yes" | "no"'
    (tmp_path / "schema.json").write_text(schema)
    (tmp_path / "yes.gbnf").write_text(grammar)
    expected = SamplingParams(response_format={"type": "object"})
    for given in (schema, str(tmp_path / "schema.json")):
        assert edgellm("run", model, "-p", "sampling", "--json-schema", given).stdout == f"{expected!r}\n"
    expected = SamplingParams(grammar=grammar)
    for given in (grammar, str(tmp_path / "yes.gbnf")):
        assert edgellm("run", model, "-p", "sampling", "--grammar", given).stdout == f"{expected!r}\n"


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["--json-schema", "{bad"], 2, "--json-schema is not valid JSON: Expecting property name"),
        (["--json-schema", "no.json"], 1, "no.json: No such file or directory"),
        (["--grammar", "no.gbnf"], 1, "no.gbnf: No such file or directory"),
    ],
)
def test_schemas_and_grammars_that_cannot_be_read(edgellm: Run, words: list[str], status: int, line: str) -> None:
    done = edgellm("run", "no-such-model", "-p", "x", *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"edgellm: error: {line}") and done.stderr.count("\n") == 1


def test_help_has_sections(edgellm: Run) -> None:
    lines = edgellm("run", "--help").stdout.splitlines()
    sections = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    answer = ["The answer:", "Its structure:"]
    assert sections == ["Options:", *answer, "Choosing words:", "Against repetition:", "Other ways to choose:"]
    assert any(line.startswith("  --temp, --temperature X ") for line in lines)


def test_stats_go_to_stderr(edgellm: Run, model: str) -> None:
    done = edgellm("run", model, "-p", "Hi", "--stats")
    assert done.stdout == "heard 'Hi' in 1 messages\n"
    line = "prompt 2 tokens (1 reused), 100.0 tokens/s; answer 2 tokens, 50.0 tokens/s; first token after 0.25 s"
    assert line in done.stderr


def test_a_full_context_is_said(edgellm: Run, model: str) -> None:
    done = edgellm("run", model, "-c", "10", "-p", "slow")
    assert done.returncode == 0
    assert len(done.stdout.split()) == 8
    assert "the context of 10 tokens is full, so the answer stops here" in done.stderr
    done = edgellm("run", model, "-c", "4", "-p", "a b c d e f")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("edgellm: error: the prompt has 7 tokens, the context holds 4\n")


def test_files_that_are_no_model(edgellm: Run, home: object, tmp_path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    for name, line in [
        ("bad.gguf", "not a GGUF file"),
        ("no.gguf", "no such file"),
        ("what", "no model is named"),
    ]:
        done = edgellm("run", name, "-p", "x", cwd=tmp_path)
        assert done.returncode != 0
        assert done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("edgellm: error: ") and line in last


def test_an_unexpected_error_is_one_line(edgellm: Run, model: str) -> None:
    done = edgellm("run", model, "-p", "crash")
    assert done.returncode == 1
    assert done.stderr.endswith("edgellm: error: unexpected RuntimeError: boom; EDGELLM_DEBUG=1 shows where\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")
def test_ctrl_c_and_a_closed_pipe_while_answering(model: str) -> None:
    command = [*FAKE, "run", model, "-p", "slow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(6) == b"word0 "
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n") and b"error" not in err

    def left_alone() -> float:
        """Seconds until it has ended."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.read(6)
            process.stdout.close()
            begin = time.monotonic()
            assert process.wait(timeout=60) == 141
            assert process.stderr.read() == b"edgellm: compiling kernels (3)\n"
            return time.monotonic() - begin

    once_within(2, left_alone)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_that_is_ignored_stays_so(model: str, name: str) -> None:
    """As `nohup` and a shell without job control ask for it."""
    ignoring = f"trap '' {name.removeprefix('SIG')}; exec \"$@\""
    command = ["sh", "-c", ignoring, "sh", *FAKE, "run", model, "-p", "slow", "-c", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(6) == b"word0 "
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"word50 " in out
    assert b"the context of 60 tokens is full, so the answer stops here" in err


def test_without_a_model_the_default_is_fetched_and_named(edgellm: Run, home: object, monkeypatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    done = edgellm("run", "-p", "x")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "edgellm: no model named, using smollm2-135m"
    assert lines[1] == "edgellm: pulling smollm2-135m (98.4 MB, licence: Apache-2.0)"
    assert lines[2].startswith("edgellm: error: smollm2-135m cannot be pulled: ")
    assert "127.0.0.1:9 cannot be reached: Connection refused" in lines[2]
    assert len(lines) == 3


def test_an_answer_goes_on_when_the_context_is_full(edgellm: Run, tiny_path) -> None:
    common = ["run", str(tiny_path), "--raw", "-p", "the tea", "-c", "64", "-n", "300", "-l", "2-inf", "--temp", "0"]
    stopped = edgellm(*common, real=True)
    assert "the context of 64 tokens is full, so the answer stops here" in stopped.stderr
    gone_on = edgellm(*common, "--when-full", "shift", "--keep", "8", real=True)
    assert gone_on.returncode == 0 and len(gone_on.stdout) > 2 * len(stopped.stdout)
    assert gone_on.stdout.startswith(stopped.stdout.rstrip("\n")[:20])
    assert "the context of 64 tokens was full 8 times, and the answer went on without the oldest" in gone_on.stderr
    for words, said in (
        (["--keep", "8"], "--keep is for --when-full shift"),
        (["--when-full", "drop"], "--when-full drop is for a chat on a terminal"),
        (["--when-full", "shift", "--keep", "-2"], "--keep is -2"),
        (["--when-full", "shift", "--keep", "60"], None),  # of a prompt that has fewer
    ):
        done = edgellm(*common, *words, real=True)
        assert (done.returncode, said in done.stderr) == (2, True) if said else done.returncode == 0
