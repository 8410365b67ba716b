"""How far edgellm's logits are from float32 `transformers` on the same weights, and from each other.

    python tools/quality.py MODEL.gguf --tokens 512 --text edgellm/evaluate/ordinary.txt --peer ~/peer/bin/python

The reference dequantizes the same file: `from_pretrained(gguf_file=...)` undoes what conversion to GGUF did
(the row order of Llama's q and k, the one added to Gemma's norms). It is slow, so its logits are kept in
edgellm's cache folder. `--peer`, an interpreter that has llama-cpp-python, adds llama.cpp's distance on the
same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edgellm
from edgellm import files
from edgellm.evaluate import ORDINARY_TEXT, Distance

HERE = Path(__file__).parent

Logits = NDArray[np.float32]


def reference(path: Path, text: str, n_tokens: int) -> tuple[list[int], Logits]:
    """The first n_tokens of `text`, and float32[n_tokens, n_vocab] that transformers computes for them."""
    key = json.dumps([files.sha256_of(path), text, n_tokens, version("transformers")])
    folder = files.home() / "references" / hashlib.sha256(key.encode()).hexdigest()[:16]
    ids_file, logits_file = folder / "ids.npy", folder / "logits.npy"
    if not logits_file.exists():
        print("computing the reference; later runs find it in the cache", file=sys.stderr)
        ids, logits = _reference(path, text, n_tokens)
        with files.atomic_write(ids_file) as file:
            np.save(file, ids)
        with files.atomic_write(logits_file) as file:
            np.save(file, logits)
    return np.load(ids_file).tolist(), np.load(logits_file, mmap_mode="r")


def _reference(path: Path, text: str, n_tokens: int) -> tuple[NDArray[np.int64], Logits]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :n_tokens]
    if ids.shape[1] < n_tokens:
        sys.exit(f"the text has {ids.shape[1]} tokens; --tokens asks for {n_tokens}")
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    with torch.no_grad():
        return ids[0].numpy(), model(ids).logits[0].numpy()


def own_logits(path: Path, ids: list[int], n_batch: int, activations: str, kv_type: str) -> Logits:
    """float32[n_tokens, n_vocab] of edgellm, n_batch tokens in one pass."""
    with edgellm.load(path, n_ctx=len(ids), n_batch=n_batch, activations=activations, kv_type=kv_type) as model:
        return model.logits(ids)


def peer_logits(python: str, path: Path, ids: list[int]) -> Logits:
    with tempfile.TemporaryDirectory() as folder:
        ids_file, logits_file = Path(folder, "ids.npy"), Path(folder, "logits.npy")
        np.save(ids_file, ids)
        script = HERE / "peer_llama_cpp.py"
        subprocess.run([python, script, "logits", path, ids_file, logits_file], check=True)
        return np.load(logits_file)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--text", type=Path, default=ORDINARY_TEXT)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter with llama-cpp-python")
    parser.add_argument("--activations", default="int8", help="int8 or f32 (int8)")
    parser.add_argument("--kv-type", default="f16", help="f16, q8_0, q4_0 or f32, or two as KEYS:VALUES (f16)")
    args = parser.parse_args()
    how = (args.activations, args.kv_type)

    text = args.text.read_text(encoding="utf-8")
    ids, expected = reference(args.model, text, args.tokens)
    if edgellm.load_tokenizer(args.model).encode(text, add_special=True)[: len(ids)] != ids:
        print("edgellm's tokenizer gives other ids; used are those of the reference", file=sys.stderr)

    print(f"{args.model.name}, {len(ids)} tokens of {args.text.name}\n")
    print(f"{'':24}{'from float32 transformers':^40}   {'from one batch':^22}")
    print(f"{'':24}{'mean KL':>10}{'median':>10}{'99th pct':>10}{'top-1':>10}   {'top-1':>10}{'largest':>12}")
    if args.peer:
        show("llama.cpp", expected, peer_logits(args.peer, args.model, ids))
    whole = own_logits(args.model, ids, len(ids), *how)
    show("edgellm, one batch", expected, whole)
    for name, n_batch in {"edgellm, by token": 1, "edgellm, chunks of 37": 37}.items():
        show(name, expected, own_logits(args.model, ids, n_batch, *how), whole)


def show(name: str, expected: Logits, found: Logits, whole: Logits | None = None) -> None:
    """A line of the table: the distance from the reference, and from edgellm's own logits of one batch."""
    far = Distance.between(expected, found)
    line = f"{name:24}{far.mean:10.2g}{far.median:10.2g}{far.percentile_99:10.2g}{far.same_top:10.2%}"
    if whole is not None:
        same = np.mean(whole.argmax(axis=-1) == found.argmax(axis=-1))
        largest = max(float(np.abs(a - b).max()) for a, b in zip(whole, found, strict=True))
        line += f"   {same:10.2%}{largest:12.2g}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
