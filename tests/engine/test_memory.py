"""What does not fit into memory: said before anything is half made, with the bytes it would take and what to change."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

import edgellm
from edgellm.engine import allocation as allocation_module
from edgellm.engine import model as model_module
from edgellm.errors import MemoryLimitError, size_text
from edgellm.formats.gguf import GGUFFile
from edgellm.graph import program as program_module
from tests.arch import tiny

from .test_close import is_mapped
from .test_generation import generated

KV_BYTES = 2 * 2 * 2 * 16 * 2  # of a token: layers, keys and values, heads, dimensions, float16


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> Path:
    """A tiny model that says of itself that it was trained on four thousand million tokens."""
    checkpoint = tiny.llama()
    checkpoint.metadata["llama.context_length"] = (1 << 32) - 1
    return checkpoint.save(tmp_path_factory.mktemp("models") / "endless.gguf")


@pytest.fixture
def own_path(tmp_path) -> Path:
    """A tiny model that no other test has loaded: one that was refused there may wait for a collection of garbage."""
    return tiny.llama().save(tmp_path / "own.gguf")


def refuses(path: Path, parameter: str, text: str, **params) -> None:
    before = {*threading.enumerate()}
    with pytest.raises(MemoryLimitError, match=text) as error:
        edgellm.load(path, n_threads=2, **params)
    assert error.value.parameter == parameter and parameter in str(error.value) and "\n" not in str(error.value)
    del error
    assert {*threading.enumerate()} <= before and not is_mapped(path)


def test_a_context_beyond_all_memory(endless) -> None:
    for n_ctx in (1 << 31, (1 << 32) - 1):
        size = size_text(n_ctx * KV_BYTES)
        refuses(endless, "n_ctx", rf"a context of {n_ctx} tokens needs a KV cache of {size}", n_ctx=n_ctx)
    with edgellm.load(endless, n_threads=1) as model:
        assert model.n_ctx == 8192


def test_a_batch_beyond_all_memory(endless, monkeypatch) -> None:
    monkeypatch.setattr(program_module, "total_memory", lambda: 100_000_000)
    refuses(endless, "n_batch", r"a batch of 300000 tokens needs \d+\.\d MB", n_ctx=300_000, n_batch=300_000)


def test_memory_that_cannot_be_had(own_path, monkeypatch) -> None:
    """The cache makes do with less; what is not enough for one context is said."""
    made, allocate = [], allocation_module.KVCache

    def at_most(n_blocks: int):
        def cache(layers, n, *states):
            made.append(n[None])
            if n[None] > n_blocks:
                raise MemoryError
            return allocate(layers, n, *states)

        return cache

    monkeypatch.setattr(allocation_module, "KVCache", at_most(40))
    with edgellm.load(own_path, n_threads=1) as model:
        assert made == [8 * 17, 17] and generated(model)
    monkeypatch.setattr(allocation_module, "KVCache", at_most(0))
    refuses(own_path, "n_ctx", r"a context of 1024 tokens needs a KV cache of \d+\.\d kB")


@pytest.mark.parametrize("place", ["context_of", "load_tokenizer", "Runner"])
def test_out_of_memory_anywhere(own_path, monkeypatch, place: str) -> None:
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(model_module, place, fail)
    said = "not enough memory to run it with a context of 100 tokens and 512 tokens at a time"
    refuses(own_path, "n_ctx", said, n_ctx=100)


def test_out_of_memory_while_the_file_is_opened(tiny_path, monkeypatch) -> None:
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(GGUFFile, "_add_part", fail)
    for call in (edgellm.load, edgellm.load_tokenizer):
        with pytest.raises(MemoryLimitError, match="not enough memory to open it"):
            call(tiny_path)


LIMITED = """
import resource, sys
import edgellm

path, n_ctx, allowed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
edgellm.load(path, n_threads=1).close()  # all that loading needs anyway
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + allowed, used + allowed))
try:
    with edgellm.load(path, n_ctx=n_ctx, n_threads=1) as model:
        print("loaded", len(model.logits([5])))
except edgellm.MemoryLimitError as error:
    print(error.parameter, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are tried on Linux")
def test_a_limit_of_the_process(endless) -> None:
    def run(n_ctx: int, allowed: int) -> str:
        command = [sys.executable, "-c", LIMITED, str(endless), str(n_ctx), str(allowed)]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

    n_ctx = 1 << 22
    assert run(n_ctx, 600 << 20).startswith("n_ctx a context of 4194304 tokens needs a KV cache of 1.1 GB; this ")
    assert run(n_ctx, 1800 << 20) == "loaded 1\n"  # one context fits, if not eight
