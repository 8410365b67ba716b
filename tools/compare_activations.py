"""Whether a model learns as well with int8 activations as with float32 ones: the same runs with both, for some seeds.

    python tools/compare_activations.py smollm2-135m --data facts.jsonl [--steps 100] [--seeds 3] [-o curves.svg]

A seed decides the first weights of the adapter and the order of the examples, so two runs of one seed differ by
rounding alone, and runs of two seeds by what is noise. Printed are the mean losses of the last fifth of the steps, and
how far smoothed curves are from each other: those of one seed with both activations, and those of two seeds with one.
"""

from __future__ import annotations

import argparse
from html import escape
from itertools import combinations
from pathlib import Path

import numpy as np

import edgellm
from edgellm.train.curve import round_numbers

SMOOTHED = 10  # steps
KINDS = ("int8", "f32")
COLOURS = {"int8": "#c2410c", "f32": "#0b6e99"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 742, 400, 62, 16, 58, 46


def losses(args: argparse.Namespace, kind: str, seed: int) -> np.ndarray:
    found: list[float | None] = []
    config = edgellm.TrainConfig(
        steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, seed=seed, activations=kind
    )
    with edgellm.load(args.model, n_threads=args.threads, activations=kind) as model:
        edgellm.train(model, args.data, config=config, callback=lambda step: found.append(step.loss))
    return np.array([loss for loss in found if loss is not None])


def smooth(curve: np.ndarray) -> np.ndarray:
    return np.convolve(curve, np.ones(SMOOTHED) / SMOOTHED, "valid")


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(smooth(one) - smooth(other)).mean())


def drawn(curves: dict[tuple[str, int], np.ndarray], title: str) -> str:
    """An SVG of the smoothed curves, a colour for each kind."""
    lines = {key: smooth(curve) for key, curve in curves.items()}
    n_steps = max(map(len, curves.values()))
    values = round_numbers(min(map(np.min, lines.values())), max(map(np.max, lines.values())), 6)
    steps = round_numbers(0, n_steps, 8, least=1)

    def x(step: float) -> float:
        return LEFT + step / steps[-1] * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (values[-1] - value) / (values[-1] - values[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        "<style>text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#52606d}",
        "path{fill:none;stroke-width:1.5}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#f8fafc"/>',
        f'<text x="{LEFT}" y="24">{escape(title)}</text>',
    ]
    for value in values:
        parts.append(f'<path d="M{LEFT},{y(value):.1f} H{WIDTH - RIGHT}" stroke="#dde3ea"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    foot = f'y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
    parts += [f'<text x="{x(step):.1f}" {foot}>{step:.4g}</text>' for step in steps]
    for (kind, _), line in lines.items():
        points = " ".join(f"{x(n + SMOOTHED):.1f},{y(value):.1f}" for n, value in enumerate(line))
        parts.append(f'<path d="M{points}" stroke="{COLOURS[kind]}"/>')
    for n, kind in enumerate(KINDS):
        at = LEFT + 90 * n
        parts.append(f'<path d="M{at},40 h22" stroke="{COLOURS[kind]}"/><text x="{at + 28}" y="44">{kind}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">step; loss in nats per token</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, metavar="SVG")
    args = parser.parse_args()
    curves: dict[tuple[str, int], np.ndarray] = {}
    for seed in range(args.seeds):
        for kind in KINDS:
            curve = curves[kind, seed] = losses(args, kind, seed)
            end = curve[-max(1, len(curve) // 5) :].mean()
            print(f"seed {seed}  {kind:4}  first loss {curve[0]:.4f}  mean of the last fifth {end:.4f}", flush=True)
    same = [distance(curves["int8", seed], curves["f32", seed]) for seed in range(args.seeds)]
    print(f"int8 from f32, one seed:  {np.mean(same):.4f} nats, at most {np.max(same):.4f}")
    pairs = combinations(range(args.seeds), 2)
    if others := [distance(curves["f32", one], curves["f32", other]) for one, other in pairs]:
        print(f"f32 from f32, two seeds:  {np.mean(others):.4f} nats, at least {np.min(others):.4f}")
    if args.output:
        title = f"LoRA on {args.model}: {args.seeds} seeds with each kind of activations, means of {SMOOTHED} steps"
        args.output.write_text(drawn(curves, title), encoding="utf-8")


if __name__ == "__main__":
    main()
