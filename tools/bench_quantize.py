"""edgellm's quantizer and llama.cpp's: error, loss and time, as tables for docs/quantization.md.

    python tools/bench_quantize.py errors --peer ~/peer/bin/python --weights model-f16.gguf
    python tools/bench_quantize.py loss model-f32.gguf --peer ~/peer/bin/python --text ordinary.txt --imatrix FILE
    python tools/bench_quantize.py speed big-f16.gguf --peer ~/peer/bin/python -t 2

`--peer` is an interpreter that has llama-cpp-python, built from source for this CPU.

errors  The root mean square of what quantizing changes in weights, divided by llama.cpp's: below 1 is better. For
        weights drawn from three distributions, and for those of the models given (GGUF files, safetensors folders).
loss    The mean Kullback-Leibler divergence of the quantized model from the float model, in nats. `transformers`
        computes both in float32, from what the files' weights mean: nothing but the weights differs.
speed   Seconds for a whole file, the median of rounds in turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.recipes import RECIPES
from edgellm.evaluate import ORDINARY_TEXT
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.imatrix import read_imatrix
from edgellm.kernels import isa
from edgellm.kernels.fit import CompiledFit
from edgellm.kernels.store import KernelStore
from edgellm.quants import FORMATS

PEER = str(Path(__file__).with_name("peer_llama_cpp.py"))
N_ROWS, N_COLS = 1024, 1024  # of the weights whose errors are measured

Floats = NDArray[np.float32]


def samples(models: list[Path]) -> Iterator[tuple[str, Floats]]:
    """Weights by where they come from: float32 [n, N_COLS]."""
    rng = np.random.default_rng(0)
    size = (N_ROWS, N_COLS)
    drawn = {
        "normal": rng.standard_normal(size),
        "Laplace": rng.laplace(size=size),
        "t, 4 degrees": rng.standard_t(4, size),
    }
    for name, x in drawn.items():
        yield name, (0.02 * x).astype(np.float32)
    for path in models:
        with open_checkpoint(path) if path.is_dir() else GGUFFile.open(path) as file:
            matrices = [t for t in file.tensors.values() if len(t.shape) == 2 and "embd" not in t.name]
            rows = [tensor.format.dequantize(tensor.raw[::16]).reshape(-1) for tensor in matrices]
            weights = np.concatenate(rows)
            yield path.stem, weights[: weights.size // N_COLS * N_COLS].reshape(-1, N_COLS)


def measure_errors(args: argparse.Namespace) -> None:
    fit = CompiledFit(KernelStore(isa.choose()))
    kinds = [kind for kind in FORMATS.values() if kind.block_size > 1]
    columns = list(samples(args.weights))
    heading("type", *(name for name, _ in columns))
    for kind in kinds:
        ratios = []
        for _, x in columns:
            ours = kind.dequantize(kind.quantize(x, fit=fit))
            theirs = kind.dequantize(peer_rows(args.peer, x, kind.ggml_type))
            ratios.append(ratio(error(ours, x), error(theirs, x)))
        show(kind.name, *ratios)


def peer_rows(python: str, x: Floats, tensor_type: int) -> NDArray[np.uint8]:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "x.npy"), Path(folder, "out.npy")
        np.save(source, x)
        subprocess.run([python, PEER, "rows", source, str(tensor_type), out], check=True)
        return np.load(out)


def ratio(ours: float, theirs: float) -> str:
    """Weights that lie on a grid already are kept exactly."""
    if theirs == 0:
        return "both 0" if ours == 0 else "worse than 0"
    return f"{ours / theirs:.3f}"


def error(found: Floats, x: Floats) -> float:
    return float(np.sqrt(np.square(found.astype(np.float64) - x).mean()))


def measure_loss(args: argparse.Namespace) -> None:
    expected = log_likelihoods(args.model, args.text, args.windows, args.context)
    heading("type", "llama.cpp", "edgellm", "ratio", "bytes")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        target = Path(folder, "quantized.gguf")
        imatrix = Path(folder, "imatrix.npz")
        if args.imatrix:
            arrays: dict[str, Any] = dict(read_imatrix(args.imatrix).tensors)
            np.savez(imatrix, **arrays)
        for name in args.types:
            for importance in (None, args.imatrix) if args.imatrix else (None,):
                losses = []
                for command in (
                    peer_command(args, name, target, imatrix if importance else None),
                    own_command(args, name, target, importance),
                ):
                    run(command)
                    found = log_likelihoods(target, args.text, args.windows, args.context)
                    losses.append([divergence(p, q) for p, q in zip(expected, found, strict=True)])
                theirs, ours = (float(np.mean(loss)) for loss in losses)
                label = f"{name}, importance matrix" if importance else name
                show(label, f"{theirs:.4f}", f"{ours:.4f}", f"{ours / theirs:.2f}", f"{target.stat().st_size:,}")


def log_likelihoods(path: Path, texts: list[Path], n_windows: int, n_ctx: int) -> list[Any]:
    """float32 tensors [n_ctx, n_vocab], a window each, that transformers computes from the file's weights."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    windows = []
    for text in texts:
        ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
        starts = range(0, len(ids) - n_ctx + 1, n_ctx - 1)
        windows += [[tokenizer.bos_token_id, *ids[at : at + n_ctx - 1]] for at in starts][:n_windows]
    with torch.no_grad():
        return [torch.log_softmax(model(torch.tensor([window])).logits[0], -1) for window in windows]


def divergence(p: Any, q: Any) -> float:
    return float((p.exp() * (p - q)).sum(-1).double().mean())


def own_command(args: argparse.Namespace, name: str, target: Path, importance: Path | None = None) -> list[str]:
    command = [sys.executable, "-m", "edgellm", "quantize", str(args.model), str(target), name, "-t", str(args.threads)]
    return [*command, "--imatrix", str(importance)] if importance else command


def peer_command(args: argparse.Namespace, name: str, target: Path, importance: Path | None = None) -> list[str]:
    file_type = str(RECIPES[name].file_type)
    command = [args.peer, PEER, "quantize", str(args.model), str(target), file_type, "-t", str(args.threads)]
    return [*command, "--imatrix", str(importance)] if importance else command


def measure_speed(args: argparse.Namespace) -> None:
    heading("type", "llama.cpp, s", "edgellm, s", "times as fast")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        target = Path(folder, "quantized.gguf")
        for name in args.types:
            own, peer = own_command(args, name, target), peer_command(args, name, target)
            seconds(own)  # fills the page cache and the kernel store
            rounds = [(seconds(peer), seconds(own)) for _ in range(args.rounds)]
            theirs, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
            show(name, f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.1f}")


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    run(command)
    return time.perf_counter() - began


def run(command: list[str]) -> None:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr}")


def heading(*titles: str) -> None:
    show(*titles)
    show(*(["---"] * len(titles)))


def show(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True)

    def add(name: str, run: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name)
        command.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter with llama-cpp-python")
        command.set_defaults(run=run)
        return command

    errors = add("errors", measure_errors)
    errors.add_argument("--weights", type=Path, nargs="*", default=[], metavar="MODEL", help="real weights, too")
    loss, speed = add("loss", measure_loss), add("speed", measure_speed)
    for command in (loss, speed):
        command.add_argument("model", type=Path, help="a GGUF file of floats")
        command.add_argument("--types", nargs="+", choices=RECIPES, default=["Q4_K_M"], metavar="TYPE")
        command.add_argument("-t", "--threads", type=int, default=2, help="threads of both (2)")
        command.add_argument("--folder", type=Path, help="where the quantized files go for a while")
    speed.add_argument("-r", "--rounds", type=int, default=3, help="measurements of each side (3)")
    loss.add_argument("--text", type=Path, nargs="+", default=[ORDINARY_TEXT])
    loss.add_argument("--windows", type=int, default=8, help="of each text, at most (8)")
    loss.add_argument("--context", type=int, default=512, help="tokens of a window (512)")
    loss.add_argument("--imatrix", type=Path, help="measure with this importance matrix, too")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
