"""How well and how fast a model is trained from nothing, beside torch.

    python tools/bench_pretraining.py TEXT [--config examples/shakespeare.yaml] [--steps 100] [--threads 2]

Both sides have the same shape, tokenizer, first weights, windows in the same order, and AdamW with the same settings;
torch runs `transformers`' Llama in float32, a batch at once. Each works in a process of its own, one after the other.
Without --steps both train as long as the config says. Told are the loss on the part of the text that is not trained on,
before and after, tokens a second of the steps, and the most memory that the process had. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgellm.train.documents import Documents
from edgellm.train.loop import Step
from edgellm.train.new.config import NewConfig
from edgellm.train.new.corpus import WindowBatches
from edgellm.train.new.run import prepare, train_new
from edgellm.train.schedule import learning_rate

SIDES = ("edgellm", "torch")
NEVER = 10**9  # steps: validations are before the first and after the last alone


def by_edgellm(config: NewConfig, threads: int) -> dict[str, float]:
    found: list[Step] = []
    with tempfile.TemporaryDirectory() as folder:
        summary = train_new(config, Path(folder) / "new.gguf", n_threads=threads, callback=found.append)
    before, after = (step.validation_loss for step in (found[0], found[-1]))
    assert before is not None and after is not None
    return {"before": before, "after": after, "tok/s": summary.tokens_per_second, "seconds": summary.train_seconds}


def by_torch(config: NewConfig, threads: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from edgellm.convert.export import export_checkpoint

    torch.set_num_threads(threads)
    training = config.training
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first.gguf"
        prepared = prepare(config, first)
        prepared.model.write(first)
        export_checkpoint(first, Path(folder) / "first", "f32")
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "first", dtype=torch.float32)
    n_batch = training.batch_size * training.accumulate
    batches = WindowBatches(prepared.corpus, n_batch, n_batch, training.seed)
    n_steps = training.n_steps(batches.n_batches)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=training.betas, eps=training.epsilon, weight_decay=training.weight_decay
    )

    def loss_of(documents: Documents) -> torch.Tensor:
        """The sum over all targets; windows of one length go through the model together."""
        parts = documents.apart()
        losses = []
        for length in sorted({len(part.ids) for part in parts}):
            same = [part for part in parts if len(part.ids) == length]
            ids, targets = (
                torch.tensor([getattr(part, name).tolist() for part in same]) for name in ("ids", "targets")
            )
            logits = model(ids).logits.flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum"))
        return torch.stack(losses).sum()

    def validation() -> float:
        with torch.no_grad():
            held = batches.validation
            return sum(loss_of(part).item() for part in held) / sum(len(part) for part in held)

    before, n_tokens, seconds, step = validation(), 0, 0.0, 0
    while step < n_steps:
        for (documents,) in batches.epoch(step // batches.n_batches):
            began = time.perf_counter()
            (loss_of(documents) / len(documents)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.param_groups[0]["lr"] = learning_rate(training, step, n_steps)
            optimizer.step()
            optimizer.zero_grad()
            seconds += time.perf_counter() - began
            n_tokens += len(documents)
            step += 1
            if step == n_steps:
                break
    return {"before": before, "after": validation(), "tok/s": n_tokens / seconds, "seconds": seconds}


def configured(args: argparse.Namespace) -> NewConfig:
    steps = {"steps": args.steps} if args.steps else {}
    return NewConfig.read(args.config, {"data": [str(args.text)], "eval_every": NEVER, **steps})


def side(args: argparse.Namespace) -> None:
    found = (by_torch if args.side == "torch" else by_edgellm)(configured(args), args.threads)
    found["memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(found))


def both(args: argparse.Namespace) -> None:
    found = {}
    for name in SIDES:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", name]
        found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(f"{args.config.name}, {args.threads} threads")
    print(f"{'':14}{SIDES[0]:>12}{SIDES[1]:>12}{'ratio':>10}")
    for key in found["torch"]:
        ours, theirs = (found[name][key] for name in SIDES)
        print(f"{key:14}{ours:12.4f}{theirs:12.4f}{ours / theirs:10.3f}")


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("text", type=Path)
    example = Path(__file__).parent.parent / "examples" / "shakespeare.yaml"
    parser.add_argument("--config", type=Path, default=example)
    parser.add_argument("--steps", type=int)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    both(args) if args.side is None else side(args)


if __name__ == "__main__":
    main()
