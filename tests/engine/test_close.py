"""What a closed model gives back: all of it, at once, whoever still holds the model or an answer of it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import numpy as np
import psutil
import pytest

import edgellm
from edgellm.errors import UsageError
from tests.arch import tiny

from .test_generation import PROMPT, generated

CLOSED = "the model is closed"


def is_mapped(path) -> bool:
    if not hasattr(psutil.Process, "memory_maps"):
        pytest.skip("this system does not tell which files are mapped")
    return any(mapping.path == str(path) for mapping in psutil.Process().memory_maps())


def large_arrays(model) -> list[weakref.ref]:
    """All that takes memory: values, scratch, keys and values, batches, converted weights."""
    runner = model._runner
    arrays = [*runner.cache.memory]
    for program in runner.programs:
        arrays += [program.arena, program._scratch, program.ops, program.batch.token_ids, *program._records]
        arrays += program.lowered.constants.values()
    return [weakref.ref(array if array.base is None else array.base) for array in arrays]


@pytest.fixture
def no_collector():
    """Nothing may wait for a collection of garbage."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_everything_is_given_back_at_once(tmp_path) -> None:
    path = tiny.llama().save(tmp_path / "tiny.gguf", "F16")
    before = {*threading.enumerate()}
    model = edgellm.load(path, n_threads=3, n_batch=32)
    ended, suspended, not_begun = (model.generate(PROMPT, temperature=0.0, max_tokens=9) for _ in range(3))
    list(ended)
    next(suspended)
    pieces = model.logits_in_pieces(PROMPT)
    next(pieces)
    logits = model.logits(PROMPT)
    arrays = large_arrays(model)
    assert is_mapped(path) and len(arrays) > 30 and len({*threading.enumerate()} - before) == 2
    model.close()
    assert {*threading.enumerate()} <= before
    assert [array for array in arrays if array() is not None] == []
    assert not is_mapped(path)
    assert np.isfinite(logits).all()  # which are the caller's own
    assert len(ended.token_ids) == 9 and list(ended) == []
    for generation in (suspended, not_begun):
        with pytest.raises(UsageError, match=CLOSED):
            next(generation)
        assert generation.finish_reason == "cancelled" and list(generation) == []
    with pytest.raises(UsageError, match=CLOSED):
        next(pieces)
    assert [array for array in arrays if array() is not None] == []


@pytest.mark.usefixtures("no_collector")
def test_a_model_that_cannot_be_loaded_leaves_nothing(tmp_path) -> None:
    checkpoint = tiny.llama()
    checkpoint.tensors["blk.1.extra.weight"] = np.ones((4, 32), np.float32)
    path = checkpoint.save(tmp_path / "more.gguf")
    before = {*threading.enumerate()}
    with pytest.raises(edgellm.UnsupportedError, match="extra"):
        edgellm.load(path)
    assert not is_mapped(path) and {*threading.enumerate()} <= before


@pytest.mark.usefixtures("no_collector")
def test_a_model_that_is_let_go_leaves_no_mapping(tmp_path) -> None:
    path = tiny.llama().save(tmp_path / "tiny.gguf")
    model = edgellm.load(path, n_threads=2)
    generated(model)
    arrays = large_arrays(model)
    del model
    assert [array for array in arrays if array() is not None] == [] and not is_mapped(path)


@pytest.mark.usefixtures("no_collector")
def test_a_tokenizer_alone_needs_no_file(tmp_path) -> None:
    path = tiny.llama().save(tmp_path / "tiny.gguf")
    tokenizer = edgellm.load_tokenizer(path)
    assert not is_mapped(path)
    with edgellm.load(path, n_threads=1) as model:
        assert tokenizer.encode("the tea", add_special=True) == model.tokenize("the tea", add_special=True)


async def waited_for(answer):
    return await answer


USES = {
    "metadata": lambda model: model.metadata,
    "tokenizer": lambda model: model.tokenizer,
    "chat_template": lambda model: model.chat_template,
    "tokenize": lambda model: model.tokenize("a"),
    "detokenize": lambda model: model.detokenize([5]),
    "logits": lambda model: model.logits([5]),
    "logits_in_pieces": lambda model: model.logits_in_pieces([5]),
    "values": lambda model: model.values,
    "run": lambda model: model.run([5]),
    "unembed": lambda model: model.unembed(np.zeros((1, 64), np.float32)),
    "bind": lambda model: model.bind({"output.weight": np.zeros(1, np.uint8)}),
    "square_sums": lambda model: model.square_sums(),
    "adapters": lambda model: model.adapters,
    "n_text": lambda model: model.n_text,
    "load_adapter": lambda model: model.load_adapter("a"),
    "adapter_notes": lambda model: model.adapter_notes("a"),
    "set_adapters": lambda model: model.set_adapters([]),
    "unload": lambda model: model.unload("a"),
    "generate": lambda model: model.generate("a"),
    "generate ids": lambda model: model.generate([5]),
    "chat": lambda model: model.chat([{"role": "user", "content": "Hi"}]),
    "openai_chat": lambda model: model.openai_chat([{"role": "user", "content": "Hi"}]),
    "openai_begun": lambda model: model.openai_begun([{"role": "user", "content": "Hi"}], {}),
    "embed": lambda model: model.embed(["a"]),
    "rank": lambda model: model.rank("a", ["b"]),
    "tasks": lambda model: model.tasks,
    "notes": lambda model: model.notes,
    "batch": lambda model: model.batch(["a"]),
    "save_session": lambda model: model.save_session("no such folder/file", "a"),
    "load_session": lambda model: model.load_session("no such file"),
    "generate_async": lambda model: asyncio.run(waited_for(model.generate_async("a"))),
    "chat_async": lambda model: asyncio.run(waited_for(model.chat_async([{"role": "user", "content": "Hi"}]))),
}


def test_a_closed_model_says_so(tiny_path) -> None:
    with edgellm.load(tiny_path, n_threads=1) as model:
        pass
    model.close()
    for name, use in USES.items():
        with pytest.raises(UsageError, match=CLOSED):
            use(model)
            pytest.fail(name)
    assert (model.path, model.n_ctx, model.n_vocab, model.n_threads) == (tiny_path, 1024, tiny.N_VOCAB, 1)
    assert "closed" in repr(model) and model.layout == "file"
    with pytest.raises(AttributeError, match="no_such"):
        model.no_such  # noqa: B018


def test_every_method_was_tried() -> None:
    kinds = (edgellm.Model, *edgellm.Model.__bases__)
    public = {name for kind in kinds for name in vars(kind) if not name.startswith("_")} - {*dir(object)}
    assert public - {"close", "layout"} <= {name.split()[0] for name in USES}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_closing_ends_what_other_threads_generate(tmp_path, n_threads) -> None:
    """Each of them gets the error, wherever it was at that moment: within a token or between two."""
    checkpoint = tiny.llama(max_position_embeddings=8192)
    checkpoint.tensors["output.weight"][tiny.EOS] = 0  # so that no answer ends by itself
    path = checkpoint.save(tmp_path / "endless.gguf")
    model = edgellm.load(path, n_threads=n_threads)
    started, ends = threading.Barrier(4), []

    def work(start: int) -> None:
        generation = model.generate([start] * 100, temperature=0.0)
        try:
            next(generation)
            started.wait(60)
            for _ in generation:
                pass
        except UsageError as end:
            ends.append((str(end), generation.finish_reason))
        del generation

    threads = [threading.Thread(target=work, args=(start,)) for start in (5, 6, 7)]
    for thread in threads:
        thread.start()
    started.wait(60)
    model.close()
    for thread in threads:
        thread.join(60)
    assert ends == [(CLOSED, "cancelled")] * 3
    assert not is_mapped(path)


def test_closing_from_several_threads(tiny_path) -> None:
    for _ in range(5):
        model = edgellm.load(tiny_path, n_threads=2)
        next(model.generate(PROMPT, temperature=0.0))
        threads = [threading.Thread(target=model.close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        with pytest.raises(UsageError, match=CLOSED):
            model.tokenize("a")
