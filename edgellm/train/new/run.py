"""From a config and files of text to a model that can be trained, and to its GGUF file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgellm.engine import Model, load
from edgellm.engine.block_table import blocks_for
from edgellm.errors import MemoryLimitError, UsageError, size_text
from edgellm.files import check_room, refuse_target
from edgellm.kernels.records import KV_BLOCK
from edgellm.machine import available_memory
from edgellm.text import load_tokenizer
from edgellm.train.full import FullLearner
from edgellm.train.loop import Step
from edgellm.train.model_learner import DEFAULT_BATCH
from edgellm.train.new.config import NewConfig
from edgellm.train.new.corpus import Corpus, WindowBatches, encode_corpus
from edgellm.train.new.model import NewModel, new_model
from edgellm.train.new.routers import RouterLearner
from edgellm.train.new.shape import Shape
from edgellm.train.new.texts import TextFiles
from edgellm.train.new.vocabulary import learn_vocabulary
from edgellm.train.one_run import alone_in
from edgellm.train.session import Session, Summary

TRAINED_BYTES = 16  # for each weight: itself, its gradient, and two averages of AdamW
QUANTIZED_COLUMNS = 32  # of the smallest blocks

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is needed to train a model from nothing. notes: what a person should know."""

    model: NewModel
    shape: Shape
    corpus: Corpus
    notes: list[str] = field(default_factory=list)

    def about(self) -> list[str]:
        """What there is, for people, a line each."""
        corpus, n_vocab = self.corpus, len(self.model.metadata["tokenizer.ggml.tokens"])
        per_token = corpus.n_bytes / corpus.n_tokens
        documents = "1 document" if corpus.n_documents == 1 else f"{corpus.n_documents:,} documents"
        return [
            f"model: {self.model.n_parameters:,} weights{self._active()}, a vocabulary of {n_vocab:,} tokens",
            f"text: {documents}, {corpus.n_tokens:,} tokens of {per_token:.2f} bytes; "
            f"{len(corpus.validation.ids):,} of them for validation",
            *self.notes,
        ]

    def _active(self) -> str:
        if self.shape.n_experts is None:
            return ""
        n_active = self.shape.n_active_parameters(len(self.model.metadata["tokenizer.ggml.tokens"]))
        return f", {n_active:,} of them for each token ({self.shape.n_experts_used} of {self.shape.n_experts} experts)"


def prepare(config: NewConfig, target: Path, progress: Progress | None = None) -> Prepared:
    """Learn the tokenizer, draw the first weights, and read the text. The same config and text give the same.

    target:    the file that the model will be; nothing is written yet.
    progress:  (done, total, what).

    Raises FileProblem, FormatError, UsageError, or MemoryLimitError for a model that could not be trained here.
    """
    if not config.data:
        raise UsageError("a new model needs a text to learn from; name one or several files", parameter="data")
    text = TextFiles([Path(os.path.expanduser(name)) for name in config.data], config.documents.separator)
    refuse_target(target, text.paths)
    vocabulary = learn_vocabulary(config.tokenizer, text.sample(config.tokenizer.sample_bytes), progress)
    n_parameters = config.shape.n_parameters(vocabulary.n_vocab)
    if n_parameters * TRAINED_BYTES > available_memory():
        raise MemoryLimitError(
            f"a model of {n_parameters:,} weights needs {size_text(n_parameters * TRAINED_BYTES)} in training, and "
            f"{size_text(available_memory())} are free; choose a smaller one (`edgellm train plan` knows sizes)"
        )
    model = new_model(target.stem, config.shape, vocabulary, config.training.seed)
    corpus = encode_corpus(
        load_tokenizer(model.metadata),
        text.pieces(),
        n_ctx=config.shape.n_ctx,
        validation=config.training.validation,
        seed=config.training.seed,
        progress=(lambda done: progress(done, text.n_bytes, "reading the text")) if progress else None,
    )
    notes = [*vocabulary.notes, *_notes_on_widths(config.shape)]
    if text.n_bytes > config.tokenizer.sample_bytes and config.tokenizer.tokenizer != "bytes":
        learnt = size_text(config.tokenizer.sample_bytes)
        notes.append(f"tokens were learnt from about {learnt} of the {size_text(text.n_bytes)} of text (sample_bytes)")
    return Prepared(model, config.shape, corpus, notes)


def train_new(
    config: NewConfig,
    target: Path,
    *,
    folder: Path | None = None,
    resume: bool = False,
    n_threads: int | None = None,
    tensorboard: bool | None = None,
    progress: Progress | None = None,
    told: Callable[[Prepared], object] = lambda prepared: None,
    callback: Callable[[Step], object] | None = None,
) -> Summary:
    """Prepare a model, train it, and write its GGUF file; whenever it is stopped, a file at `target` stays as it was.

    folder:    for settings, log, loss curve and checkpoints (see `Session`); None keeps none.
    resume:    go on with the run in that folder, to the same weights as if it had never stopped.
    told:      called with what was prepared, before training begins.
    callback:  called with each Step; True ends the run there, and what was learnt is written.

    Raises as `prepare` and `Session.train` do.
    """
    Session(folder, resume=resume).check()
    config.training.check_validation()
    if not resume:
        config.training.check_warmup()
    with alone_in(folder):
        prepared = prepare(config, target, progress)
        told(prepared)
        model, corpus, training = prepared.model, prepared.corpus, config.training
        n_ctx = config.shape.n_ctx
        n_windows = windows_at_once(n_ctx)
        n_batch = n_windows * n_ctx
        batches = WindowBatches(corpus, training.batch_size * training.accumulate, n_windows, training.seed)
        digests = {"data_digest": _digest(corpus)} if folder else {}
        recompute, in_bf16 = training.gradient_checkpointing, training.precision == "mixed"
        session = Session(folder, config.settings(), digests, resume, tensorboard)
        activations = training.activations or "f32"
        with TemporaryDirectory(prefix="edgellm-") as place:
            first = Path(place) / "first.gguf"
            model.write(first)
            model.weights.clear()  # the learner has its own
            check_room(target, first.stat().st_size)
            with (
                load(first, n_threads=n_threads, n_batch=n_batch, kv_type="f32", activations=activations) as loaded,
                closing(_learner(config, loaded, n_batch=n_batch, recompute=recompute, in_bf16=in_bf16)) as learner,
            ):
                summary = session.train(learner, batches, training, callback or (lambda step: None))
                replace(model, weights=learner.parameters).write(target)
    return summary


def windows_at_once(n_ctx: int) -> int:
    """How many windows go through the model together: each has blocks of the cache of its own."""
    return max(1, DEFAULT_BATCH // (blocks_for(n_ctx) * KV_BLOCK))


def _learner(config: NewConfig, model: Model, **options: Any) -> FullLearner:
    coefficient = config.router.router_aux_loss_coef
    return FullLearner(model, **options) if coefficient is None else RouterLearner(model, coefficient, **options)


def _notes_on_widths(shape: Shape) -> list[str]:
    return [
        f"{name} is {width}, no multiple of {QUANTIZED_COLUMNS}: such matrices cannot be quantized and stay floats"
        for name, width in (("n_embd", shape.n_embd), shape.inner_width)
        if width % QUANTIZED_COLUMNS
    ]


def _digest(corpus: Corpus) -> str:
    """What tells one text, cut into tokens and parts, from another."""
    digest = sha256()
    for windows in (corpus.training, corpus.validation):
        digest.update(len(windows.ids).to_bytes(8, "little") + windows.ids.tobytes())
    return digest.hexdigest()
