"""A loaded model: the front door of the engine."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from edgellm import hub
from edgellm.arch import architecture_of
from edgellm.engine.generation import Generation
from edgellm.engine.runner import Runner, Span
from edgellm.errors import (
    ContextOverflowError,
    FileProblem,
    FormatError,
    MemoryLimitError,
    TemplateError,
    UsageError,
)
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.kernels.kv_types import KV_TYPES
from edgellm.params import DEFAULT_CONTEXT_LIMIT, RuntimeConfig, SamplingParams
from edgellm.text import ChatTemplate, Tokenizer, load_tokenizer

PIECE_BYTES = 64 << 20  # of logits at a time, where not all are asked for at once


def load(
    model: str | os.PathLike[str],
    *,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_batch: int = RuntimeConfig.n_batch,
    kv_type: str = RuntimeConfig.kv_type,
    observe: bool = RuntimeConfig.observe,
    progress: Callable[[int, int, str], None] | None = None,
) -> Model:
    """Open a GGUF file, or a model of the catalogue by its name, ready to run.

    The keywords are those of `RuntimeConfig`. progress(done, total, kernel) is called while kernels are compiled, on
    a first start.
    Raises FileProblem (or its FormatError, UnsupportedError) for a file that cannot be run, UsageError for
    parameters that cannot work, MemoryLimitError for a context that this machine cannot hold.
    """
    return Model(hub.resolve(model), RuntimeConfig(n_ctx, n_threads, n_batch, kv_type, observe), progress)


class Model:
    """A model in memory. All methods may be called from several threads at once.

    path, metadata:  the file and its metadata.
    config:          its hyperparameters.
    tokenizer:       text to ids and back.
    chat_template:   how the file turns messages into a prompt; None for a base model.
    n_ctx:           tokens that a conversation may hold.
    """

    def __init__(
        self, path: Path, runtime: RuntimeConfig, progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        self.path = path
        self._file = GGUFFile.open(path)
        try:
            self.metadata: Mapping[str, Any] = self._file.metadata
            architecture = architecture_of(self.metadata)
            self.config = architecture.configure(self.metadata)
            self.n_ctx = _context(runtime.n_ctx, self.config.n_ctx_train)
            self.tokenizer = load_tokenizer(self.metadata)
            check_vocabulary(self._file.tensors, self.tokenizer)
            self.chat_template = ChatTemplate.from_metadata(self.metadata, self.tokenizer)
            self._runner = Runner(
                self._file,
                architecture,
                self.config,
                self.n_ctx,
                min(runtime.n_batch, self.n_ctx),
                runtime.n_threads,
                KV_TYPES[runtime.kv_type],
                progress,
                runtime.observe,
            )
            self.n_vocab = self._runner.n_vocab
            self.n_threads = self._runner.n_threads
        except MemoryError as problem:
            self._file.close()
            raise MemoryLimitError(f"{path}: not enough memory to run it with n_ctx={self.n_ctx}: {problem}") from None
        except FileProblem as problem:
            self._file.close()
            raise type(problem)(f"{path}: {problem}") from None
        except BaseException:
            self._file.close()
            raise
        self._closed = False

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Text to token ids. add_special: with what the model expects around a text (its BOS token, say)."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, token_ids: Iterable[int], skip_special: bool = False) -> str:
        """Token ids to text."""
        return self.tokenizer.decode(token_ids, skip_special=skip_special)

    def logits(self, token_ids: Iterable[int]) -> np.ndarray:
        """The scores of every next token after each token of a text: float32 [n_tokens, n_vocab]."""
        ids = self._checked(token_ids)
        parts = list(self._pieces(ids, 0, self._runner.n_batch))
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def logits_in_pieces(self, token_ids: Iterable[int], first: int = 0) -> Iterator[np.ndarray]:
        """The rows of `logits` from the token `first` on, a few at a time: float32 [n, n_vocab].

        Those before are not computed, and no piece takes more than PIECE_BYTES unless one row does.
        """
        n_rows = min(self._runner.n_batch, max(1, PIECE_BYTES // (4 * self.n_vocab)))
        return self._pieces(self._checked(token_ids), first, n_rows)

    def other_weights(self, name: str, raw: np.ndarray) -> AbstractContextManager[None]:
        """A context in which the matrix `name` has other weights, `raw` in its own format, to see what they change.

        Nobody else may use the model meanwhile.
        """
        return self._runner.other_weights(name, raw)

    @property
    def input_squares(self) -> dict[str, np.ndarray]:
        """What an importance matrix is made of, in a model loaded with observe=True: float64 [n_in] by weight name.

        For the weight of each linear, the squares of what it was given, added up over all tokens so far. For the
        one that makes logits, these are only the tokens whose logits were asked for.
        """
        return self._runner.body.graph.squares | self._runner.head.graph.squares

    def generate(self, prompt: str | Iterable[int], **sampling: Any) -> Generation:
        """Continue a prompt, as plain text. Keywords are those of `SamplingParams`.

        Raises ContextOverflowError when the prompt alone does not fit.
        """
        ids = self.tokenize(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
        return self._generate(self._checked(ids), _sampling(sampling))

    def chat(
        self, messages: list[dict[str, Any]], template_variables: Mapping[str, Any] | None = None, **sampling: Any
    ) -> Generation:
        """Answer the last of some messages [{"role": "user", "content": ...}, ...], by the model's chat template.

        Raises TemplateError when the model has none or its template refuses the messages.
        """
        if self.chat_template is None:
            raise TemplateError(
                f"{self.path.name} is a base model without a chat template; use generate() to continue plain text"
            )
        prompt = self.chat_template.render(messages, add_generation_prompt=True, **(template_variables or {}))
        ids = self.tokenize(prompt, add_special=False, parse_special=True)
        return self._generate(self._checked(ids), _sampling(sampling))

    def close(self) -> None:
        """End the threads and let go of the file."""
        if not self._closed:
            self._closed = True
            self._runner.close()
            self._file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.path.name}, {self.config.architecture}, n_ctx={self.n_ctx}>"

    def _generate(self, ids: list[int], params: SamplingParams) -> Generation:
        sequence = self._runner.cache.resume(ids[:-1])  # the last token is computed anew, for its logits
        return Generation(self._runner, self.tokenizer, sequence, ids, params, self.n_ctx)

    def _pieces(self, ids: list[int], first: int, n_rows: int) -> Iterator[np.ndarray]:
        """Logits from the token `first` on, of up to n_rows tokens in each pass."""
        sequence, n_batch = self._runner.cache.sequence(), self._runner.n_batch
        try:
            while (start := len(sequence)) < len(ids):
                n = min(n_batch, first - start) if start < first else n_rows
                piece = ids[start : start + n]
                logits = self._runner.forward([Span(sequence, piece, len(piece) if start >= first else 0)])
                if start >= first:
                    yield logits
        finally:
            sequence.release()

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        if self._closed:
            raise UsageError("the model is closed")
        try:
            ids = [operator.index(token_id) for token_id in token_ids]
        except TypeError:
            raise UsageError(f"expected token ids, whole numbers; found {token_ids!r:.60}") from None
        if not ids:
            raise UsageError("the prompt is empty; expected at least one token")
        if len(ids) > self.n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens and the context holds {self.n_ctx}; shorten it, "
                f"or load with a larger n_ctx (this model was trained on {self.config.n_ctx_train})"
            )
        if self.n_vocab <= max(ids) < self.tokenizer.n_vocab:
            raise UsageError(
                f"the prompt holds token {max(ids)} ({self.tokenizer.token_name(max(ids))!r:.60}), which was added to "
                f"the vocabulary and never to the model: its embedding has {self.n_vocab} rows; leave it out"
            )
        if not 0 <= min(ids) <= max(ids) < self.n_vocab:
            raise UsageError(
                f"token ids from {min(ids)} to {max(ids)}; this vocabulary goes from 0 to {self.n_vocab - 1}"
            )
        return ids


def _context(wanted: int | None, n_ctx_train: int) -> int:
    if wanted is None:
        return min(n_ctx_train, DEFAULT_CONTEXT_LIMIT)
    if wanted > n_ctx_train:
        raise UsageError(
            f"a context of {wanted} tokens was asked for; this model was trained on {n_ctx_train}: "
            f"choose -c / n_ctx up to that"
        )
    return wanted


def check_vocabulary(tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
    """Raise FormatError unless every token has an embedding, and every logit a token.

    Added tokens may come after the last row: people add a padding token and never give it one. No prompt can hold such
    a token (see `Model.logits`), and as it has no logit, no answer does.
    """
    embedding = tensors.get("token_embd.weight")
    n_rows = embedding.shape[0] if embedding is not None and embedding.shape else tokenizer.n_vocab
    if not tokenizer.n_without_added <= n_rows <= tokenizer.n_vocab:
        raise FormatError(
            f"the vocabulary has {tokenizer.n_vocab} tokens and token_embd.weight {n_rows} rows; expected as many"
        )


def _sampling(keywords: dict[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**keywords)
    except TypeError as problem:
        raise UsageError(f"sampling parameters: {problem}") from None


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file or catalogue model; the file may hold a vocabulary only."""
    with GGUFFile.open(hub.resolve(path)) as file:
        return load_tokenizer(file.metadata)
