"""llama.cpp, measured through the C functions of llama-cpp-python. Run by that environment's own interpreter.

    python tools/peer_llama_cpp.py bench MODEL -p 512 -n 64 -d 0 -t 2     one JSON line of tokens per second
    python tools/peer_llama_cpp.py start MODEL -p TEXT -c 512 -t 2        one token of the answer, as text
    python tools/peer_llama_cpp.py logits MODEL IDS.npy OUT.npy -t 2      float32[n_tokens, n_vocab]
    python tools/peer_llama_cpp.py quantize IN OUT FILE_TYPE -t 2         a GGUF file of llama.cpp's own
    python tools/peer_llama_cpp.py rows X.npy TENSOR_TYPE OUT.npy         float32[n, n_cols] as uint8[n, row_bytes]

`tools/bench_peers.py`, `bench_quantize.py` and `quality.py` call it; it imports nothing of edgellm. Flash
attention is "auto", llama.cpp's own default, which turns it on for a CPU; `--flash-attn off` is the older way,
at times faster in a long context. The KV cache is f16.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp as lib

FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
LIBRARY = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
BATCH = 512  # tokens in one llama_decode, and in one pass inside it (n_ubatch)


class Peer:
    """One model with one context; `decode` runs tokens of sequence 0 after those it already holds."""

    def __init__(self, path: str, n_ctx: int, n_threads: int, flash_attn: str) -> None:
        lib.llama_log_set(_silent, None)
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = FLASH_ATTN[flash_attn]
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.cpp cannot make a context of {n_ctx} tokens for {path}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)

    def decode(self, ids: list[int]) -> None:
        """Run `ids` in batches; logits of the last token are ready when it returns."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            tokens = (lib.llama_token * len(part))(*part)
            if lib.llama_decode(self.context, lib.llama_batch_get_one(tokens, len(part))):
                sys.exit("llama_decode failed")
        lib.llama_synchronize(self.context)

    def trim(self, n_tokens: int) -> None:
        """Forget all but the first n_tokens."""
        memory = lib.llama_get_memory(self.context)
        if not lib.llama_memory_seq_rm(memory, 0, n_tokens, -1):
            sys.exit("llama.cpp cannot shorten this model's cache")


@lib.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    pass


def bench(args: argparse.Namespace) -> None:
    """Decode, then prefill, each from a context of exactly `depth` tokens, after a warm-up of both."""
    peer = Peer(args.model, args.depth + max(args.prompt, args.generate) + 1, args.threads, args.flash_attn)
    tokens = [1 + i * 31 % min(peer.n_vocab - 1, 30_000) for i in range(args.depth + max(args.prompt, args.generate))]
    peer.decode(tokens[: args.prompt])
    peer.decode([1])
    peer.trim(0)
    if args.depth:
        peer.decode(tokens[: args.depth])

    started = time.perf_counter()
    for i in range(args.generate):
        peer.decode([tokens[i]])
    decoded = time.perf_counter() - started
    peer.trim(args.depth)

    started = time.perf_counter()
    peer.decode(tokens[args.depth : args.depth + args.prompt])
    prefilled = time.perf_counter() - started
    print(
        json.dumps(
            {
                "prefill_tokens_per_second": args.prompt / prefilled,
                "decode_tokens_per_second": args.generate / decoded,
            }
        )
    )


def start(args: argparse.Namespace) -> None:
    """What `edgellm run --raw -n 1 --temp 0` does: load, read the prompt, print the likeliest next token."""
    peer = Peer(args.model, args.context, args.threads, args.flash_attn)
    text = args.prompt.encode()
    ids = (lib.llama_token * (len(text) + 8))()
    n_ids = lib.llama_tokenize(peer.vocab, text, len(text), ids, len(ids), True, True)
    peer.decode(ids[:n_ids])
    token = lib.llama_sampler_sample(lib.llama_sampler_init_greedy(), peer.context, -1)
    piece = ctypes.create_string_buffer(256)
    n_bytes = lib.llama_token_to_piece(peer.vocab, token, piece, len(piece), 0, True)
    sys.stdout.buffer.write(piece.raw[:n_bytes])
    sys.stdout.buffer.flush()


def logits(args: argparse.Namespace) -> None:
    """Logits of every token, of a text that fits one batch as of a longer one."""
    import numpy as np

    ids = np.load(args.ids).tolist()
    peer = Peer(args.model, len(ids), args.threads, args.flash_attn)
    out = np.lib.format.open_memmap(args.out, "w+", np.float32, (len(ids), peer.n_vocab))
    for begin in range(0, len(ids), BATCH):
        part = ids[begin : begin + BATCH]
        batch = lib.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.logits[i] = token, begin + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if lib.llama_decode(peer.context, batch):
            sys.exit("llama_decode failed")
        rows = np.ctypeslib.as_array(lib.llama_get_logits(peer.context), (len(part), peer.n_vocab))
        out[begin : begin + len(part)] = rows
    out.flush()


def quantize(args: argparse.Namespace) -> None:
    """FILE_TYPE is a number of llama.h's llama_ftype; --imatrix an .npz of mean squared inputs by tensor."""
    import numpy as np

    lib.llama_log_set(_silent, None)
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = args.threads, args.file_type, True
    if args.imatrix:
        importance = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(args.imatrix).items()}
        entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()  # one without a name is the end
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if lib.llama_model_quantize(args.model.encode(), args.out.encode(), ctypes.byref(params)):
        sys.exit("llama_model_quantize failed")


def rows(args: argparse.Namespace) -> None:
    """TENSOR_TYPE is a number of ggml.h's ggml_type."""
    import numpy as np

    ggml = ctypes.CDLL(str(Path(lib.__file__).parent / "lib" / f"libggml-base{LIBRARY}"))
    size = ctypes.c_size_t
    ggml.ggml_row_size.restype, ggml.ggml_row_size.argtypes = size, [ctypes.c_int, ctypes.c_int64]
    ggml.ggml_quantize_chunk.restype = size
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    x = np.ascontiguousarray(np.load(args.model), np.float32)
    raw = np.empty((len(x), ggml.ggml_row_size(args.tensor_type, x.shape[1])), np.uint8)
    ggml.ggml_quantize_chunk(args.tensor_type, x.ctypes.data, raw.ctypes.data, 0, *x.shape, None)
    np.save(args.out, raw)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("model")
    common.add_argument("-t", "--threads", type=int, default=2)
    common.add_argument("--flash-attn", choices=FLASH_ATTN, default="auto")

    command = commands.add_parser("bench", parents=[common])
    command.add_argument("-p", "--prompt", type=int, default=512)
    command.add_argument("-n", "--generate", type=int, default=64)
    command.add_argument("-d", "--depth", type=int, default=0)
    command.set_defaults(run=bench)

    command = commands.add_parser("start", parents=[common])
    command.add_argument("-p", "--prompt", required=True)
    command.add_argument("-c", "--context", type=int, default=512)
    command.set_defaults(run=start)

    command = commands.add_parser("logits", parents=[common])
    command.add_argument("ids")
    command.add_argument("out")
    command.set_defaults(run=logits)

    command = commands.add_parser("quantize", parents=[common])
    command.add_argument("out")
    command.add_argument("file_type", type=int)
    command.add_argument("--imatrix")
    command.set_defaults(run=quantize)

    command = commands.add_parser("rows", parents=[common])
    command.add_argument("tensor_type", type=int)
    command.add_argument("out")
    command.set_defaults(run=rows)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
