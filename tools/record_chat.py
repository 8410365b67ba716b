"""Hold a short chat in a real pseudo-terminal and draw it as a picture for README.

    python tools/record_chat.py docs/chat.svg "Why is the sky blue? Answer in two sentences." "And at sunset?"

Needs pexpect (in the extra `test`). The picture is what the terminal showed, without its colours.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import pexpect

COLUMNS = 84
CHARACTER, LINE, MARGIN = 8.4, 20, 18  # pixels at 14px type
PROMPT = ">>> "
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r(?!\n)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", default="1")
    args = parser.parse_args()
    args.out.write_text(picture(chat(args.model, args.seed, args.questions)), encoding="utf-8")


def chat(model: str, seed: str, questions: list[str]) -> list[str]:
    """The lines on the terminal after all questions were answered."""
    command = ["-m", "edgellm", "run", model, "--seed", seed, "--temp", "0.6"]
    terminal = pexpect.spawn(sys.executable, command, dimensions=(60, COLUMNS), timeout=120, encoding="utf-8")
    terminal.expect_exact(PROMPT)
    shown = f"$ edgellm run {model}\n{terminal.before}"
    for question in questions:
        terminal.sendline(question)
        terminal.expect_exact("\n")  # the terminal's echo of the question
        terminal.expect_exact(PROMPT)
        shown += f"{PROMPT}{question}\n{terminal.before}"
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    lines = ESCAPES.sub("", shown.replace("\r\n", "\n")).rstrip().split("\n")
    # Where a line is longer than the terminal is wide, the terminal goes on below.
    wrapped = [line[at : at + COLUMNS] for line in lines for at in range(0, max(1, len(line)), COLUMNS)]
    return [*wrapped, PROMPT]


def picture(lines: list[str]) -> str:
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN
    rows = [
        f'<text x="{MARGIN}" y="{MARGIN + LINE * (i + 0.75):.0f}" class="{style(line)}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" role="img" '
            f'aria-label="A chat with edgellm in a terminal">',
            "<style>text{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}"
            ".said{fill:#e6edf3}.typed{fill:#7ee787}.note{fill:#8b949e}</style>",
            f'<rect width="{width:.0f}" height="{height}" rx="10" fill="#0d1117"/>',
            *rows,
            "</svg>\n",
        ]
    )


def style(line: str) -> str:
    if line.startswith((PROMPT.strip(), "$ ")):
        return "typed"
    return "note" if line.startswith("edgellm:") else "said"


if __name__ == "__main__":
    main()
