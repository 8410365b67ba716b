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
from edgellm.engine.inside import bound_weights, look_inside, square_sums, unembed
from edgellm.engine.request import Scores
from edgellm.engine.runner import Runner
from edgellm.engine.scheduler import Scheduler
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
    activations: str = RuntimeConfig.activations,
    cache_bytes: int | None = RuntimeConfig.cache_bytes,
    progress: Callable[[int, int, str], None] | None = None,
) -> Model:
    """Open a GGUF file, or a model of the catalogue by its name, ready to run.

    The keywords are those of `RuntimeConfig`. progress(done, total, kernel) is called while kernels are compiled, on
    a first start.
    Raises FileProblem (or its FormatError, UnsupportedError) for a file that cannot be run, UsageError for
    parameters that cannot work, MemoryLimitError for a context that this machine cannot hold.
    """
    return Model(
        hub.resolve(model), RuntimeConfig(n_ctx, n_threads, n_batch, kv_type, activations, cache_bytes), progress
    )


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
            self._runner = Runner(self._file, architecture, self.config, self.n_ctx, runtime, progress)
            self._scheduler = Scheduler(self._runner)
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

    @property
    def values(self) -> dict[str, int]:
        """Widths of all values that can be tapped or bound, by their names, in the order in which they are computed."""
        return {name: value.width for name, value in self._runner.graphs.values.items()}

    def run(
        self,
        token_ids: Iterable[int],
        taps: Iterable[str] = ("logits",),
        bind: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Compute a text and look inside: float32 [n_tokens, width] of every value that `taps` name.

        taps:  names of `values`, or patterns of them: "blk.*.attn_out".
        bind:  values that are given rather than computed, float32 [n_tokens, width], by name; and weights that are
               replaced, as bytes of their own format, by the names of their tensors.

        Raises UsageError for names that do not exist and arrays that do not fit.
        """
        return look_inside(self._scheduler, self._checked(token_ids), taps, bind or {})

    def unembed(self, states: np.ndarray) -> np.ndarray:
        """Any hidden states through the head, a logit lens (nostalgebraist, 2020).

        states: float32 [n, n_embd], such as `blk.5.l_out` of `run`. Returns logits, float32 [n, n_vocab].
        """
        self._check_open()
        return unembed(self._scheduler, states)

    def bind(self, memory: Mapping[str, np.ndarray]) -> AbstractContextManager[None]:
        """A context in which weights are others: bytes, uint8, of a tensor's own format and size, by its name.

        Nobody else may use the model meanwhile. Raises UsageError for names that do not exist, bytes that do not fit,
        and weights that are bound already.
        """
        self._check_open()
        return bound_weights(self._scheduler, memory)

    def square_sums(self) -> AbstractContextManager[dict[str, np.ndarray]]:
        """A context in which every run adds up the squares of what each linear is given, for importance matrices.

        Gives float64 [n_in] by the name of the linear's weight. Of the one that makes logits, only the tokens whose
        logits are asked for count. Nobody else may use the model meanwhile.
        """
        self._check_open()
        return square_sums(self._scheduler)

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
            self._scheduler.close()
            self._file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.path.name}, {self.config.architecture}, n_ctx={self.n_ctx}>"

    def _generate(self, ids: list[int], params: SamplingParams) -> Generation:
        return Generation(self._scheduler, self.tokenizer, ids, params, self.n_ctx)

    def _pieces(self, ids: list[int], first: int, n_rows: int) -> Iterator[np.ndarray]:
        """Logits from the token `first` on, of up to n_rows tokens in each piece."""
        request = Scores(ids)
        self._scheduler.submit(request)
        try:
            while (start := max(first, request.n_cached)) < len(ids):
                end = min(start + n_rows, len(ids))
                rows = np.empty((end - start, self.n_vocab), np.float32)
                request.ask(end, rows)
                self._scheduler.wait(request)
                yield rows
            if request.n_cached < len(ids):  # nobody wants logits, but maybe what happens on the way
                request.ask(len(ids), np.empty((0, self.n_vocab), np.float32))
                self._scheduler.wait(request)
        finally:
            self._scheduler.retire(request)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed")

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        self._check_open()
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
