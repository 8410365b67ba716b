"""How fast a LoRA step is, beside PEFT with torch on the same weights, and how much memory each takes.

    python tools/bench_training.py smollm2-135m [--threads 2] [--rounds 3]
    python tools/bench_training.py smollm2-135m --against CHECKOUT    # beside edgellm of another commit instead

Both sides do the same work in turns, each in a process of its own: rank 8 on all linear layers, AdamW, batches of 4
times 256 tokens, a loss on every token. PEFT has the same weights in float32. Needs torch, transformers and peft.
Tokens a second are of whole steps, medians of rounds; memory is the most that the process had. `cpu` are tokens a
second of CPU time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
BATCH, LENGTH, RANK, ALPHA = 4, 256, 8, 16
STEPS = 3


def ids_of(n_vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(10, min(n_vocab, 30000), (BATCH, LENGTH))


def edgellm_step(model_name: str, threads: int, activations: str) -> Callable[[], float]:
    import edgellm
    from edgellm.train.config import LoraConfig
    from edgellm.train.documents import Documents
    from edgellm.train.lora import LoraLearner
    from edgellm.train.optimizer import AdamW

    model = edgellm.load(model_name, n_threads=threads, n_ctx=1024, activations=activations, layout="file")
    learner = LoraLearner(model, LoraConfig(rank=RANK, alpha=ALPHA), n_batch=LENGTH)
    documents = [Documents.of(ids, np.ones(LENGTH, bool)) for ids in ids_of(model.n_vocab)]
    optimizer = AdamW(learner.parameters)
    weight = sum(part.total_weight for part in documents)

    def step() -> float:
        for gradient in learner.gradients.values():
            gradient[...] = 0
        loss = sum(learner.loss_and_gradients(part, 1 / weight) for part in documents) / weight
        optimizer.update(learner.gradients, 1e-4)
        return loss

    return step


def peft_step(folder: str, threads: int) -> Callable[[], float]:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.from_numpy(ids_of(model.config.vocab_size))

    def step() -> float:
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def measured(step: Callable[[], float]) -> dict[str, float]:
    losses = [step()]
    wall, cpu = time.perf_counter(), time.process_time()
    losses += [step() for _ in range(STEPS)]
    n = STEPS * BATCH * LENGTH
    return {
        "tok/s": n / (time.perf_counter() - wall),
        "cpu": n / (time.process_time() - cpu),
        "memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "first loss": losses[0],
        "last loss": losses[-1],
    }


def in_turns(args: argparse.Namespace) -> None:
    from edgellm.convert.export import export_checkpoint
    from edgellm.hub import resolve

    path = resolve(args.model)
    sides = {"edgellm": ROOT} | ({"against": args.against.resolve()} if args.against else {"peft": ROOT})
    with tempfile.TemporaryDirectory() as folder:
        if not args.against:
            export_checkpoint(path, Path(folder) / "model", "f32")
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, checkout in sides.items():
                kind = "peft" if side == "peft" else "edgellm"
                command = [sys.executable, __file__, str(path), "--side", kind, "--folder", f"{folder}/model"]
                command += ["--threads", str(args.threads), "--activations", args.activations]
                env = {**os.environ, "PYTHONPATH": str(checkout)}
                run = subprocess.run(command, check=True, capture_output=True, env=env)
                found[side].append(json.loads(run.stdout))
    print(f"{path.name}, {args.threads} threads\n{'':14}" + "".join(f"{side:>12}" for side in sides) + f"{'ratio':>10}")
    for key in found["edgellm"][0]:
        ours, theirs = (statistics.median(one[key] for one in found[side]) for side in sides)
        print(f"{key:14}{ours:12.2f}{theirs:12.2f}{ours / theirs:10.2f}")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("model")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--activations", default="int8")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of edgellm, instead of PEFT")
    parser.add_argument("--side", choices=("edgellm", "peft"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side is None:
        in_turns(args)
    elif args.side == "peft":
        print(json.dumps(measured(peft_step(args.folder, args.threads))))
    else:
        print(json.dumps(measured(edgellm_step(args.model, args.threads, args.activations))))


if __name__ == "__main__":
    main()
