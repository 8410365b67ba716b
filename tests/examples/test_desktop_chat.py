"""The example with a window, on a display that nobody sees: it shows progress, stays responsive, and stops."""

from __future__ import annotations

import gc
import importlib.util
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgellm
from tests.arch import tiny

tk = pytest.importorskip("tkinter", reason="this Python has no Tk")
if shutil.which("Xvfb") is None:
    pytest.skip("Xvfb is the display; it is not installed", allow_module_level=True)

SCRIPT = Path(__file__).parents[2] / "examples" / "desktop_chat.py"
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}{{ m.content }}</s>{% endfor %}"
LONGEST = 60  # seconds that anything may take


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    number = server.stdout.readline().strip()
    try:
        if not number:
            pytest.skip("Xvfb does not start here")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def root(display: str) -> Iterator[Any]:
    """One for all windows: Tk wants to end in the thread in which it began, and garbage may be collected in another."""
    root = tk.Tk(screenName=display)
    yield root
    root.destroy()
    del root
    gc.collect()


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("desktop_chat", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["desktop_chat"] = module
    spec.loader.exec_module(module)
    return module


def chatty(folder: Path, n_ctx: int) -> Path:
    """A tiny model with a chat template."""
    checkpoint = tiny.llama()
    checkpoint.metadata["tokenizer.chat_template"] = TEMPLATE
    checkpoint.metadata["llama.context_length"] = n_ctx
    return checkpoint.save(folder / "chat.gguf")


class Driver:
    """Somebody at the window."""

    def __init__(self, chat: Any) -> None:
        self.chat = chat
        self.seen: set[str] = set()  # what the line of status said
        show = chat._show

        def seen(event: Any) -> None:
            show(event)
            self.seen.add(chat.status["text"])

        chat._show = seen
        self.longest = 0.0  # seconds between two moments in which the window did something

    def until(self, done: Callable[[], object]) -> None:
        begun = last = time.monotonic()
        while not done():
            self.chat.root.update()
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            assert now - begun < LONGEST, f"{self.chat.status['text']}: {self.text[-300:]}"
            time.sleep(0.002)

    def say(self, text: str) -> None:
        self.chat.message.insert(0, text)
        self.chat.button.invoke()

    @property
    def text(self) -> str:
        return str(self.chat.talk.get("1.0", "end"))


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model whose answers go on to the end of a long context."""
    chat = edgellm.Model.chat

    def slowly(ids: Any, logits: Any, context: Any) -> None:
        time.sleep(0.005)  # a tiny model would be done before anybody can stop it

    def without_end(model: edgellm.Model, messages: list[dict[str, str]]) -> edgellm.Generation:
        bias = dict.fromkeys(model.tokenizer.stop_ids, -math.inf)
        return chat(model, messages, logit_bias=bias, samplers=["temperature", slowly])

    monkeypatch.setattr(edgellm.Model, "chat", without_end)
    return chatty(tmp_path, 8192)


@pytest.fixture
def open_window(example: Any, root: Any) -> Iterator[Callable[[Path], Driver]]:
    opened: list[Any] = []

    def open_one(model: Path) -> Driver:
        chat = example.Chat(tk.Toplevel(root), str(model))
        opened.append(chat)
        return Driver(chat)

    yield open_one
    for chat in opened:
        chat.close()
        assert chat.worker.join(LONGEST)


def test_a_message_is_answered_and_an_answer_stopped(open_window: Callable[[Path], Driver], endless: Path) -> None:
    driver = open_window(endless)
    chat = driver.chat
    assert chat.is_busy and chat.button["text"] == "Stop"
    driver.until(lambda: not chat.is_busy)
    assert chat.status["text"] == "chat" and chat.button["text"] == "Send"
    driver.say("Tell me")
    assert chat.is_busy and chat.message.get() == ""
    driver.until(lambda: len(driver.text) > 60)
    chat.message.insert(0, "more")
    chat.send()  # not while an answer is being written
    assert chat.message.get() == "more"
    chat.button.invoke()
    driver.until(lambda: not chat.is_busy)
    assert chat.status["text"].startswith("stopped after ") and driver.text.startswith("Tell me\n")
    assert {"answering", "reading (100 %)"} <= driver.seen
    assert driver.longest < 2  # on a busy machine; what waits for a model waits longer
    chat.send()
    driver.until(lambda: len(driver.text.partition("more\n")[2]) > 20)
    chat.button.invoke()
    driver.until(lambda: not chat.is_busy)


def test_a_long_talk_goes_on(open_window: Callable[[Path], Driver], tmp_path: Path) -> None:
    driver = open_window(chatty(tmp_path, 1024))
    driver.until(lambda: not driver.chat.is_busy)
    for _ in range(2):
        driver.say("the tea " * 150)
        driver.until(lambda: not driver.chat.is_busy)
    assert "the oldest message is forgotten" in driver.text
    driver.say("a " * 3000)
    driver.until(lambda: not driver.chat.is_busy)
    assert "the context holds 1024" in driver.text


def test_what_goes_wrong_is_said_in_the_window(open_window: Callable[[Path], Driver], tmp_path: Path) -> None:
    driver = open_window(tmp_path / "none.gguf")
    driver.until(lambda: not driver.chat.is_busy)
    assert "none.gguf: no such file" in driver.text


def test_closed_in_the_middle_of_an_answer(example: Any, root: Any, endless: Path) -> None:
    driver = Driver(example.Chat(tk.Toplevel(root), str(endless)))
    driver.until(lambda: not driver.chat.is_busy)
    driver.say("Tell me")
    driver.until(lambda: len(driver.text) > 20)
    driver.chat.close()
    assert driver.chat.worker.join(LONGEST)
