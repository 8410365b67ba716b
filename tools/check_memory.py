"""Does a process take the memory that `edgellm run --estimate` says? Forecast beside what the system counted.

python -m tools.check_memory MODEL [--texts 8] [--tokens 4096] [--kv-type f16] [-t 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.params import RuntimeConfig

if TYPE_CHECKING:
    from edgellm.text import Tokenizer

DOCS = Path(__file__).parents[1] / "docs"


def compare(model: str, runtime: RuntimeConfig, n_texts: int, n_tokens: int) -> tuple[int, int]:
    """What is said and what is taken, in bytes: of two starts the lesser, behind one that may compile kernels.

    What a start measures or makes once, for later ones, takes memory of its own.
    """
    forecast(model, runtime, n_texts, n_tokens)
    used(model, runtime, 1, n_tokens)
    said = min(forecast(model, runtime, n_texts, n_tokens) for _ in range(2))
    return said, min(used(model, runtime, n_texts, n_tokens) for _ in range(2))


def used(model: str, runtime: RuntimeConfig, n_texts: int, n_tokens: int) -> int:
    """Peak memory in bytes, mapped weights included, of a process of its own that writes these texts at once."""
    return _in_a_process("write", model, runtime, n_texts, n_tokens)


def forecast(model: str, runtime: RuntimeConfig, n_texts: int, n_tokens: int) -> int:
    """What the estimate says, in a process of its own as well: what that has in memory is part of what it says."""
    return _in_a_process("estimate", model, runtime, n_texts, n_tokens)


def _in_a_process(what: str, model: str, runtime: RuntimeConfig, n_texts: int, n_tokens: int) -> int:
    asked = [what, model, n_texts, n_tokens, runtime.kv_type, runtime.n_threads, runtime.n_batch]
    command = [sys.executable, "-m", "tools.check_memory", "--child", json.dumps(asked)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return int(done.stdout)


def _child(
    what: str, model: str, n_texts: int, n_tokens: int, kv_type: str, n_threads: int | None, n_batch: int
) -> int:
    runtime = RuntimeConfig(n_tokens, n_threads, n_batch, kv_type, disk_bytes=0)
    if what == "estimate":
        from edgellm.measure.estimate import estimate

        return estimate(Path(model), runtime).memory(n_tokens, n_texts)

    import edgellm
    from edgellm.machine import peak_memory

    n_answer = 8
    with edgellm.load(
        model, n_ctx=n_tokens, n_threads=n_threads, n_batch=n_batch, kv_type=kv_type, disk_bytes=0
    ) as loaded:
        loaded.tokenizer.stop_ids = frozenset()
        texts = _texts(loaded.tokenizer, n_texts, n_tokens - n_answer)
        loaded.batch(texts, n_parallel=n_texts, max_tokens=n_answer, temperature=0.0)
        return peak_memory()


def _texts(tokenizer: Tokenizer, n_texts: int, n_tokens: int) -> list[list[int]]:
    """Pieces of this project's documentation: which embeddings are read is as with any text that people have.

    All of its pages are encoded, for a forecast counts the tables that a tokenizer makes once it has read much; one
    after the other, for an encoder needs memory by the length of its text.
    """
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))]
    ids = cycle(list(chain.from_iterable(map(tokenizer.encode, pages))))
    return [list(islice(ids, n_tokens)) for _ in range(n_texts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("-b", "--batch", type=int, default=RuntimeConfig.n_batch)
    parser.add_argument("-t", "--threads", type=int, default=None)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(_child(*json.loads(args.child)))
        return
    from edgellm.cli.models import find

    model = str(find(args.model) or args.model)
    runtime = RuntimeConfig(args.tokens, args.threads, args.batch, args.kv_type)
    said, took = compare(model, runtime, args.texts, args.tokens)
    print(f"said {said / 1e6:.0f} MB, took {took / 1e6:.0f} MB: {100 * (said / took - 1):+.1f} %")


if __name__ == "__main__":
    main()
