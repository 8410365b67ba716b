"""A small chat on the desktop, with Tk, which Python brings along.

    python examples/desktop_chat.py [MODEL]

The window never waits. One thread loads the model and then writes the answers; it tells what happens through a queue
that the window looks into thirty times a second. That is all a program with a window of any kind needs to know:

    window ──  a message   ──►  worker     model.chat(...) gives pieces of text
           ◄── pieces, how far ──          answer.cancel() stops them, from any thread
"""

from __future__ import annotations

import queue
import sys
import threading
import tkinter as tk
from dataclasses import dataclass
from tkinter import ttk

import edgellm

LOOK_MS = 33
MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Event:
    """What the worker tells the window.

    kind:   "ready", "progress" (text, and how far from 0 to 1), "piece" and "note" (text), "ended" (text about the
            answer), "failed" (text).
    """

    kind: str
    text: str = ""
    share: float = 0.0


class Worker:
    """A model in a thread of its own: it takes messages, and puts events into a queue."""

    def __init__(self, model: str) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self._messages: queue.Queue[str | None] = queue.Queue()
        self._answer: edgellm.Generation | None = None
        self._stops = False
        self._thread = threading.Thread(target=self._run, args=(model,), daemon=True)
        self._thread.start()

    def ask(self, message: str) -> None:
        self._stops = False
        self._messages.put(message)

    def stop(self) -> None:
        """End the answer soon, also in the middle of its prompt."""
        self._stops = True
        if self._answer is not None:
            self._answer.cancel()

    def close(self) -> None:
        """End the answer and the thread, and give back the memory of the model."""
        self.stop()
        self._messages.put(None)

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, name: str) -> None:
        try:
            with edgellm.load(name, progress=self._loading) as model:
                self.events.put(Event("ready", model.path.stem))
                conversation: list[dict[str, str]] = []
                while (message := self._messages.get()) is not None:
                    conversation.append({"role": "user", "content": message})
                    try:
                        text = self._answered(model, conversation)
                    except edgellm.EdgellmError as problem:
                        text = ""
                        self.events.put(Event("failed", str(problem)))
                    if text:
                        conversation.append({"role": "assistant", "content": text})
                    else:
                        conversation.pop()
        except edgellm.EdgellmError as problem:
            self.events.put(Event("failed", str(problem)))

    def _answered(self, model: edgellm.Model, conversation: list[dict[str, str]]) -> str:
        """The answer to the last message. What does not fit is forgotten: the oldest message and its answer."""
        while True:
            try:
                begun = model.chat(conversation)
                break
            except edgellm.ContextOverflowError:
                if len(conversation) < 3:
                    raise
                del conversation[:2]
                self.events.put(Event("note", "(the oldest message is forgotten: the context is full)"))
        with begun as answer:
            self._answer = answer.on_prompt(self._reading)
            if self._stops:
                answer.cancel()
            for piece in answer:
                self.events.put(Event("piece", piece))
            self._answer = None
            said = f"{answer.stats.n_generated_tokens} tokens, {answer.stats.tokens_per_second:.0f} a second"
            if answer.finish_reason == "cancelled":
                said = f"stopped after {said}"
            elif answer.finish_reason == "context":
                said = f"the context is full; {said}"
            self.events.put(Event("ended", said))
            return answer.text

    def _loading(self, done: int, total: int, what: str) -> None:
        self.events.put(Event("progress", what, done / total if total else 0))

    def _reading(self, done: int, total: int) -> None:
        self.events.put(Event("progress", "reading", done / total))


class Chat:
    """The window."""

    def __init__(self, root: tk.Tk | tk.Toplevel, model: str) -> None:
        self.root = root
        self.worker = Worker(model)
        root.title("edgellm")
        root.geometry("640x480")
        root.protocol("WM_DELETE_WINDOW", self.close)
        root.columnconfigure(0, weight=1)
        root.rowconfigure(0, weight=1)

        self.talk = tk.Text(root, wrap="word", state="disabled", padx=8, pady=8, borderwidth=0)
        self.talk.tag_configure("user", font=("TkDefaultFont", 10, "bold"))
        self.talk.tag_configure("aside", foreground="gray")
        self.talk.grid(row=0, column=0, columnspan=2, sticky="nsew")
        self.message = ttk.Entry(root)
        self.message.bind("<Return>", lambda event: self.send())
        self.message.bind("<Escape>", lambda event: self.worker.stop())
        self.message.grid(row=1, column=0, sticky="ew", padx=(8, 4), pady=4)
        self.button = ttk.Button(root, text="Send", command=self.send)
        self.button.grid(row=1, column=1, padx=(4, 8), pady=4)
        self.progress = ttk.Progressbar(root, maximum=1.0)
        self.progress.grid(row=2, column=0, sticky="ew", padx=(8, 4), pady=(0, 8))
        self.status = ttk.Label(root, text="loading", width=30, anchor="e")
        self.status.grid(row=2, column=1, padx=(4, 8), pady=(0, 8))

        self.is_busy = True
        self._show_busy(True)
        self.message.focus()
        self._looking = root.after(LOOK_MS, self._look)

    def send(self) -> None:
        """Ask what is typed, or nothing while an answer is being written."""
        text = self.message.get().strip()
        if self.is_busy or not text:
            return
        self.message.delete(0, "end")
        self._write(f"{text}\n", "user")
        self._show_busy(True)
        self.worker.ask(text)

    def close(self) -> None:
        self.root.after_cancel(self._looking)
        self.worker.close()
        self.root.destroy()

    def _look(self) -> None:
        """Show all that the worker has told since the last look."""
        while True:
            try:
                event = self.worker.events.get_nowait()
            except queue.Empty:
                break
            self._show(event)
        self._looking = self.root.after(LOOK_MS, self._look)

    def _show(self, event: Event) -> None:
        if event.kind == "piece":
            self.progress["value"] = 0
            self.status["text"] = "answering"
            self._write(event.text)
        elif event.kind == "note":
            self._write(f"{event.text}\n", "aside")
        elif event.kind == "progress":
            self.progress["value"] = event.share
            self.status["text"] = f"{event.text} ({100 * event.share:.0f} %)"
        else:
            self.progress["value"] = 0
            if event.kind == "failed":
                self._write(f"{event.text}\n\n", "aside")
            elif event.kind == "ended":
                self._write("\n\n")
            self.status["text"] = "" if event.kind == "failed" else event.text
            self._show_busy(False)

    def _show_busy(self, is_busy: bool) -> None:
        self.is_busy = is_busy
        if is_busy:
            self.button.configure(text="Stop", command=self.worker.stop)
        else:
            self.button.configure(text="Send", command=self.send)

    def _write(self, text: str, tag: str = "") -> None:
        """Add to what is shown, and follow its end unless the person has scrolled away from it."""
        follows = self.talk.yview()[1] >= 0.999
        self.talk.configure(state="normal")
        self.talk.insert("end", text, (tag,) if tag else ())
        self.talk.configure(state="disabled")
        if follows:
            self.talk.see("end")


def main() -> None:
    root = tk.Tk()
    Chat(root, sys.argv[1] if len(sys.argv) > 1 else MODEL)
    root.mainloop()


if __name__ == "__main__":
    main()
