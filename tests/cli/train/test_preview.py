"""edgellm train preview: what is shown of examples, with and without colours, and errors as they were typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm.cli import app, main
from edgellm.cli import train as group
from edgellm.formats.gguf import GGUFWriter
from tests.text import oracles
from tests.train.data.vocabularies import CHATML, model, user

HEAD = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that has a chat template, one that has none, and some data."""
    monkeypatch.chdir(tmp_path)
    metadata = {"general.architecture": "llama", **oracles.train_byte_level("gpt-2")}
    GGUFWriter(tmp_path / "base.gguf", metadata, []).write()
    GGUFWriter(tmp_path / "chat.gguf", metadata | {"tokenizer.chat_template": CHATML}, []).write()
    write("chats.jsonl", {"messages": [user("Hi"), model("One")], "id": 7}, {"messages": [user("Hi"), model("Two")]})
    return tmp_path


def write(name: str, *rows: object) -> None:
    Path(name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")


def preview(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    assert main(["train", "preview", *words]) == status
    return capsys.readouterr()


def test_what_was_found_and_the_first_examples(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = preview(capsys, "chat.gguf", "--data", "chats.jsonl", "-n", "1")
    first, *_ = json.loads(preview(capsys, "chat.gguf", "--data", "chats.jsonl", "--json")[0])["examples"]
    n_tokens, n_trained = len(first["documents"][0]["ids"]), sum(t >= 0 for t in first["documents"][0]["targets"])
    summary, example = out.split("\n\n", 1)
    assert summary.splitlines()[:2] == [
        "data        chats.jsonl: messages: chats, 2 examples",
        "            keys that are not used: id",
    ]
    assert example == (
        f"--- example 1 of 2 (chats.jsonl, line 1): {n_trained} of {n_tokens} tokens are trained\n"
        f"{HEAD}[[One<|im_end|>]]\n"
    )
    assert err == ""


def test_counts_are_those_of_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = preview(capsys, "chat.gguf", "--data", "chats.jsonl", "--json", "-n", "9")
    found = json.loads(out)
    documents = [document for example in found["examples"] for document in example["documents"]]
    lengths = [len(document["ids"]) for document in documents]
    trained = [sum(target >= 0 for target in document["targets"]) for document in documents]
    assert (found["n_tokens"], found["n_targets"], found["lengths"]) == (sum(lengths), sum(trained), lengths)
    assert found["files"] == [{"path": "chats.jsonl", "kind": "messages", "n_examples": 2, "unused_keys": {"id": 1}}]
    out, _ = preview(capsys, "chat.gguf", "--data", "chats.jsonl", "-n", "0")
    share = f"{100 * sum(trained) / sum(lengths):.1f}"
    assert f"tokens      {sum(trained)} of {sum(lengths)} are trained ({share} %)\n" in out
    assert f"lengths     {min(lengths)} to {max(lengths)} tokens, median {min(lengths)}\n" in out
    assert "---" not in out


def test_what_is_skipped_cut_and_left_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    long = {"messages": [user("Hi"), model("x" * 200)]}
    write("mixed.jsonl", "{oops", {"messages": [user("Hi"), model("One")]}, long, {"messages": [user("Hi")]})
    words = ["chat.gguf", "--data", "mixed.jsonl", "-n", "0", "--skip-bad", "--max-length", "60"]
    out, _ = preview(capsys, *words)
    assert "bad         1 skipped: mixed.jsonl, line 1: its JSON is malformed" in out
    assert "too long    1 of more than 60 tokens (--max-length): cut\n" in out
    assert "left out    1 without a token that is trained\n" in out
    out, _ = preview(capsys, *words, "--long", "drop")
    assert "too long    1 of more than 60 tokens (--max-length): left out\n" in out


def test_pairs_and_labels_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    write("pairs.jsonl", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"})
    out, _ = preview(capsys, "chat.gguf", "--data", "pairs.jsonl")
    assert f"\n--- chosen\n{HEAD}[[Yes<|im_end|>]]\n--- rejected\n{HEAD}[[No<|im_end|>]]\n" in out
    write("labels.jsonl", {"prompt": "Hi", "completion": "Yes", "label": False})
    out, _ = preview(capsys, "chat.gguf", "--data", "labels.jsonl")
    assert f"\n--- not good\n{HEAD}[[Yes<|im_end|>]]\n" in out


def test_documents_of_one_chat_have_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    write("chats.jsonl", {"messages": [user("Hi"), model("One"), user("More"), model("Two")]})
    template = CHATML.replace("m.content +", "('' if m.role == 'assistant' and not loop.last else m.content) +")
    Path("drops.jinja").write_text(template, "utf-8")
    out, _ = preview(capsys, "chat.gguf", "--data", "chats.jsonl", "--template", "drops.jinja")
    assert "--- document 1\n" in out and "--- document 2\n" in out
    assert "note        later prompts do not go on from earlier answers" in out and "(1 chat)" in out


def test_the_settings_of_a_training_are_those_of_its_preview(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever training it is; what is typed comes first, and a name that nobody knows is refused."""
    long = {"messages": [user("Hi"), model("x" * 200)]}
    write("mixed.jsonl", "{oops", {"messages": [user("Hi"), model("One")]}, long)
    lines = ("model: chat.gguf", "data: mixed.jsonl", "max_length: 60", "long: drop", "skip_bad: true", "rank: 4",
             "beta: 0.1", "loss_type: dr_grpo", "threads: 1", "type: Q8_0", "template: mine.jinja")  # fmt: skip
    Path("train.yaml").write_text("\n".join(lines), "utf-8")
    Path("mine.jinja").write_text(CHATML.replace("<|im_end|>", "<|end|>"), "utf-8")
    out, _ = preview(capsys, "--config", "train.yaml")
    assert "bad         1 skipped" in out and "1 of more than 60 tokens (--max-length): left out" in out
    assert "[[One<|end|>]]" in out
    out, _ = preview(capsys, "--config", "train.yaml", "--long", "cut", "--max-length", "70", "--train-on", "all")
    assert "1 of more than 70 tokens (--max-length): cut" in out and "91 of 93 are trained" in out
    Path("train.yaml").write_text("model: chat.gguf\nmax_lenght: 60\n", "utf-8")
    _, err = preview(capsys, "--config", "train.yaml", status=2)
    assert err == "edgellm: error: train.yaml, line 2: 'max_lenght' is no setting; did you mean max_length?\n"
    Path("train.yaml").write_text("max_length: 1\n", "utf-8")
    _, err = preview(capsys, "--config", "train.yaml", status=2)
    assert err == "edgellm: error: train.yaml, line 1: max_length is 1; expected a number of at least 2\n"


def test_a_base_model_and_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    line = "edgellm: error: chats.jsonl, line 1: this is a chat, and the model is a base model, whose file does not say"
    _, err = preview(capsys, "base.gguf", "--data", "chats.jsonl", status=1)
    assert err.startswith(line) and "give a --template, or write" in err
    Path("mine.jinja").write_text(CHATML, "utf-8")
    out, _ = preview(capsys, "base.gguf", "--data", "chats.jsonl", "--template", "mine.jinja")
    assert f"{HEAD}[[One<|im_end|>]]" in out
    write("pairs.jsonl", {"prompt": "Hi", "completion": " you"})
    out, _ = preview(capsys, "chat.gguf", "--data", "pairs.jsonl", "--template", "none")
    assert out.endswith("\nHi[[ you<|end|>]]\n")
    Path("bad.jinja").write_bytes(b"\xff")
    _, err = preview(capsys, "base.gguf", "--data", "chats.jsonl", "--template", "bad.jinja", status=1)
    assert err == "edgellm: error: template bad.jinja is no chat template: it is not UTF-8 text\n"


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["chat.gguf"], 2, "--data is missing: type it, or put data into the --config file"),
        (["--data", "chats.jsonl"], 2, "MODEL is missing: type it, or put model into the --config file"),
        (["chat.gguf", "--data", "none.jsonl"], 1, "none.jsonl: No such file or directory"),
        (["none.gguf", "--data", "chats.jsonl"], 1, "none.gguf"),
        (["chat.gguf", "--data", "chats.jsonl", "--template", "none.jinja"], 2, "'none.jinja', which is neither"),
        (["chat.gguf", "--data", "chats.jsonl", "--max-length", "3"], 2, "cut to 3 tokens (--max-length)"),
        (
            ["chat.gguf", "--data", "chats.jsonl", "--max-length", "1"],
            2,
            "--max-length is 1; expected a number of at least 2",
        ),
        (["chat.gguf", "--data", "chats.jsonl", "--train-on", "some"], 2, "'--train-on': 'some' is not one of"),
        (["chat.gguf", "--data", ""], 2, "--data is ''; expected a path"),
    ],
)
def test_errors_are_one_line(words: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = preview(capsys, *words, status=status)
    assert out == "" and err.startswith("edgellm: error: ") and line in err and err.count("\n") == 1


def test_what_strangers_wrote_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", {"messages": [user("\x1b[31mred\r"), model("\x07bell")], "\x1b[2J": 1})
    out, _ = preview(capsys, "chat.gguf", "--data", "a.jsonl")
    assert "\x1b" not in out and "\r" not in out and "\x07" not in out
    assert "\\x1b[31mred\\x0d" in out and "[[\\x07bell" in out


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_on_a_terminal(no_color: str) -> None:
    import pexpect

    words = ["-m", "edgellm", "train", "preview", "chat.gguf", "--data", "chats.jsonl"]
    env = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    shown = pexpect.run(f"{sys.executable} {' '.join(words)}", env=env, timeout=60).decode()  # type: ignore[attr-defined]
    coloured = "assistant\r\n\x1b[32m\x1b[1mOne<|im_end|>\x1b[0m\r\n"
    assert (coloured in shown, "[[One<|im_end|>]]" in shown) == (not no_color, bool(no_color))


def test_help_lists_every_command_with_its_own_text() -> None:
    result = CliRunner().invoke(app.app, ["train", "-h"])
    assert result.exit_code == 0
    for name, text in group.COMMANDS.items():
        command = group.command.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None and (command.help or "").startswith(text)
        assert name in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgellm.cli import main; main(['train', '--help']); main(['train', 'preview', '--help']);"
        "heavy = {'numpy', 'numba', 'jinja2', 'pyarrow'} & set(sys.modules); print(heavy); sys.exit(bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
