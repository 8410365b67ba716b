"""The figure of docs/structure.md: which tokens a schema lets come, step by step, and which the model would rather say.

    python tools/draw_structure.py docs [--model smollm2-135m]

Every text and figure in it is the model's own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import edgellm
from edgellm.engine.structure.asked import asked_of
from edgellm.engine.structure.constraint import Constraint

SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["happy", "sad", "angry"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["mood", "stars"],
    "additionalProperties": False,
}
QUESTION = "The soup was cold and the waiter laughed at me. How do I feel?"
N_SHOWN = 4  # tokens of a step
WIDTH, MARGIN, ROW, BAR = 742, 20, 20, 130
COLUMNS = (MARGIN, 320, 440)
INK, FAINT, ACCENT = "#1f2933", "#9aa5b1", "#0b6e99"
STYLE = (
    "<style>text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1f2933}.small{fill:#52606d}"
    ".code{font:13px ui-monospace,'DejaVu Sans Mono',monospace}</style>"
)


@dataclass
class Step:
    """before: the answer so far. text: what comes. n_may_come: tokens that may. others: the likeliest tokens by
    themselves (text, probability, whether it may come); empty where only one text could come.
    """

    before: str
    text: str
    n_may_come: int = 1
    others: tuple[tuple[str, float, bool], ...] = ()


def steps_of(model: edgellm.Model) -> list[Step]:
    """The likeliest answer that the schema allows."""
    assert model.chat_template is not None
    prompt = model.chat_template.render([{"role": "user", "content": QUESTION}])
    ids = model.tokenize(prompt, parse_special=True)
    asked = asked_of(edgellm.SamplingParams(response_format=SCHEMA))
    assert asked is not None
    constraint = Constraint.of(asked, model.tokenizer, model.n_vocab)
    constraint.begin(ids)
    answer, steps = "", []
    while not constraint.is_complete:
        chosen = constraint.forced()
        if chosen:
            step = Step(answer, model.detokenize(chosen))
        else:
            logits = model.logits(ids)[-1]
            mask = np.frombuffer(constraint._matcher.compute_bitmask(), np.uint8)
            may_come = np.unpackbits(mask, bitorder="little")[: len(logits)].astype(bool)
            chosen = [int(np.where(may_come, logits, -np.inf).argmax())]
            step = Step(answer, model.detokenize(chosen), int(may_come.sum()), _likeliest(model, logits, may_come))
        ids = ids + chosen
        constraint.follow(ids)
        answer += step.text
        steps.append(step)
    json.loads(answer)
    return steps


def _likeliest(model: edgellm.Model, logits: np.ndarray, may_come: np.ndarray) -> tuple[tuple[str, float, bool], ...]:
    """The likeliest of all tokens, and the likeliest that may come."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    shares = weights / weights.sum()
    first = np.argsort(-shares)[: N_SHOWN - 2].tolist()
    allowed = [i for i in np.argsort(-shares * may_come)[:N_SHOWN].tolist() if may_come[i] and i not in first]
    shown = sorted([*first, *allowed][:N_SHOWN], key=lambda i: -shares[i])
    return tuple((model.detokenize([i]), float(shares[i]), bool(may_come[i])) for i in shown)


def figure(steps: list[Step], n_vocab: int) -> str:
    parts, y = [], 28
    heads = ("the answer so far, and what comes", "may come", "what the model would say")
    for x, head in zip(COLUMNS, heads, strict=True):
        parts.append(_text(x, y, head))
    y += 12
    for step in steps:
        parts.append(f'<line x1="{MARGIN}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#e4e7eb"/>')
        parts += _row(step, y + 20, n_vocab)
        y += ROW * max(1, len(step.others)) + 12
    title = "Which tokens a schema lets come, and which the model would rather say"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8}" width="{WIDTH}" height="{y + 8}" '
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return f'{head}role="img" aria-label="{title}">{STYLE}{ground}{"".join(parts)}</svg>\n'


def _row(step: Step, y: int, n_vocab: int) -> list[str]:
    before, text = _shown(step.before[-12:]), _shown(step.text)
    parts = [
        f'<text class="code" x="{COLUMNS[0]}" y="{y}"><tspan fill="{FAINT}">{before}</tspan>'
        f'<tspan fill="{ACCENT}" font-weight="bold">{text}</tspan></text>',
        _text(COLUMNS[1], y, f"{step.n_may_come} of {n_vocab}" if step.others else "only this"),
    ]
    if not step.others:
        parts.append(_text(COLUMNS[2], y, "is not asked"))
    for other, share, may_come in step.others:
        chosen = may_come and other == step.text
        fill = ACCENT if chosen else INK if may_come else FAINT
        struck = "" if may_come else ";text-decoration:line-through"
        width = max(1.0, BAR * share)
        parts += [
            f'<text class="code" x="{COLUMNS[2]}" y="{y}" style="fill:{fill}{struck}">{_shown(other)}</text>',
            f'<rect x="{COLUMNS[2] + 84}" y="{y - 9}" width="{width:.1f}" height="10" fill="{fill}"/>',
            _text(COLUMNS[2] + 92 + width, y, f"{100 * share:.1f} %" if share >= 0.001 else "under 0.1 %"),
        ]
        y += ROW
    return parts


def _text(x: float, y: float, text: str) -> str:
    return f'<text class="small" x="{x:.1f}" y="{y}">{text}</text>'


def _shown(text: str) -> str:
    """White space that can be seen."""
    return escape(text.replace(" ", "\u2423").replace("\n", "\u21b5"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    given = parser.parse_args()
    with edgellm.load(given.model, n_ctx=512) as model:
        drawn = figure(steps_of(model), model.n_vocab)
    (given.docs / "structure.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
