"""A loaded model: the front door of the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from edgellm import checks
from edgellm.arch import ModelConfig, architecture_of
from edgellm.engine.adapter_set import Adapters, AdapterSet
from edgellm.engine.answering import Answering
from edgellm.engine.generation import Generation
from edgellm.engine.inside import bound_weights, look_inside, square_sums, unembed
from edgellm.engine.opening import check_vocabulary, context_of, fetched, in_words, open_file
from edgellm.engine.pooling import makes_vectors_alone
from edgellm.engine.prompt import (
    checked_adapters,
    checked_prompt,
    with_virtual,
)
from edgellm.engine.recommended import recommended_sampling
from edgellm.engine.request import Scores
from edgellm.engine.runner import Runner
from edgellm.engine.scheduler import Scheduler
from edgellm.engine.speculation.opening import speculator_of
from edgellm.engine.vectors import MakesVectors
from edgellm.errors import FileProblem, MemoryLimitError, UsageError
from edgellm.params import RuntimeConfig
from edgellm.text import ChatTemplate, Tokenizer, chosen_template, load_tokenizer

if TYPE_CHECKING:
    from edgellm.engine.session import Session
    from edgellm.engine.square_sums import SquareSums
    from edgellm.formats.adapters import Adapter

AdapterScales: TypeAlias = "Mapping[str, float] | Iterable[str]"
PIECE_BYTES = 64 << 20  # of logits at a time, where not all are asked for at once
# What a closed model has no more.
OF_WRITERS = ("chat_template", "_scheduler", "_runner", "_adapters")  # which a model that makes vectors never had
GIVEN_BACK = ("metadata", "tokenizer", "_file", "_embedder", *OF_WRITERS)


def load(
    model: str | os.PathLike[str],
    *,
    n_ctx: int | None = RuntimeConfig.n_ctx,
    n_threads: int | None = RuntimeConfig.n_threads,
    n_batch: int = RuntimeConfig.n_batch,
    kv_type: str = RuntimeConfig.kv_type,
    activations: str = RuntimeConfig.activations,
    cache_bytes: int | None = RuntimeConfig.cache_bytes,
    speculate: str = RuntimeConfig.speculate,
    draft: str | os.PathLike[str] | None = RuntimeConfig.draft,
    draft_layers: int | None = RuntimeConfig.draft_layers,
    draft_max: int = RuntimeConfig.draft_max,
    disk_bytes: int = RuntimeConfig.disk_bytes,
    layout: str = RuntimeConfig.layout,
    template: str | os.PathLike[str] | None = RuntimeConfig.template,
    progress: Callable[[int, int, str], None] | None = None,
) -> Model:
    """Open a GGUF file, or a model by its name, ready to run. One that has a name and is not here is fetched first.

    The keywords are those of `RuntimeConfig`. progress(done, total, what) is called while a model is fetched, with
    bytes, and on a first start: while kernels are compiled, with their names, when settings are measured, with total 0,
    and while tiles are made, with bytes.
    Raises FileProblem (or its FormatError, UnsupportedError) for a file that cannot be run, UsageError for
    parameters that cannot work, MemoryLimitError for a context that this machine cannot hold, DownloadError when a
    model cannot be fetched.
    """
    runtime = RuntimeConfig(
        n_ctx, n_threads, n_batch, kv_type, activations, cache_bytes, speculate, draft, draft_layers, draft_max,
        disk_bytes, layout, template,
    )  # fmt: skip
    return Model(fetched(model, checks.function("progress", progress)), runtime, progress)


class Model(Answering, MakesVectors):
    """A model in memory. All methods may be called from several threads at once.

    path, metadata:  the file and its metadata.
    config:          its hyperparameters.
    tokenizer:       text to ids and back.
    chat_template:   how messages become a prompt; None for a base model.
    recommended_sampling:  what the file recommends (`general.sampling.*`), as keywords of `SamplingParams`.
    n_ctx:           tokens that a conversation, or a text, may hold.
    n_vocab:         tokens it can produce: as many logits as each token has.
    n_threads:       threads that compute.

    A closed model has its numbers still; anything else raises a UsageError.
    """

    path: Path
    metadata: Mapping[str, Any]
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    recommended_sampling: dict[str, Any]
    n_ctx: int
    n_vocab: int
    n_threads: int

    def __init__(
        self, path: Path, runtime: RuntimeConfig, progress: Callable[[int, int, str], None] | None = None
    ) -> None:
        self.path = path = checks.path("path", path)
        if not isinstance(runtime, RuntimeConfig):
            raise checks.wrong("runtime", runtime, "a RuntimeConfig")
        self._lock = threading.Lock()
        self._generations: WeakSet[Generation] = WeakSet()  # `close` ends those that have not ended
        self._file = open_file(path)
        self._runtime = runtime
        self._layout = "file"
        try:
            self.metadata = self._file.metadata
            architecture = architecture_of(self.metadata)
            config = architecture.configure(self.metadata)
            self.n_ctx = context_of(runtime.n_ctx, config.n_ctx_train)
            self.config = replace(config, n_ctx=self.n_ctx)
            self.tokenizer = load_tokenizer(self.metadata)
            check_vocabulary(self._file.tensors, self.tokenizer)
            self.recommended_sampling, self._notes = recommended_sampling(self.metadata)
            self._reads_only = makes_vectors_alone(self.metadata)
            if self._reads_only:
                self.tasks  # noqa: B018 - prompts that are no texts are an error at once
                self._make_embedder(architecture, progress=progress)
                self.n_vocab, self.n_threads = self._embedder.n_vocab, self._embedder.n_threads
                return
            asked = None if runtime.template is None else os.fspath(runtime.template)
            self.chat_template = chosen_template(self.metadata, self.tokenizer, asked)
            self._runner = Runner(self._file, architecture, self.config, self.n_ctx, runtime, progress)
            guessing = speculator_of(runtime, self._runner, architecture, self.n_ctx, self.tokenizer)
            self._scheduler = Scheduler(self._runner, guessing, runtime.disk_bytes)
            self._adapters = Adapters()
            self.n_vocab = self._runner.n_vocab
            self.n_threads = self._runner.n_threads
        except MemoryError:
            self._release()
            raise MemoryLimitError(
                f"{path}: there is not enough memory to run it with {in_words(runtime)}; choose a smaller n_ctx",
                parameter="n_ctx",
            ) from None
        except FileProblem as problem:
            self._release()
            raise type(problem)(f"{path}: {problem}") from None
        except BaseException:
            self._release()
            raise

    @property
    def layout(self) -> str:
        """How the weights lie: "file", "tiles" or "memory" (see `RuntimeConfig`). With "auto" it may change once."""
        runner = self.__dict__.get("_runner")  # another thread may close the model meanwhile
        layout = runner.__dict__.get("layout") if runner is not None else None
        if layout is not None:
            self._layout = layout.name
        return self._layout

    @property
    def notes(self) -> list[str]:
        """What a person should know of the file: what it leaves out or has wrong, and what is done instead."""
        return [*self.tokenizer.notes, *self._notes]

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Text to token ids. add_special: with what the model expects around a text (its BOS token, say)."""
        return self.tokenizer.encode(checks.text("text", text), add_special=add_special, parse_special=parse_special)

    def detokenize(self, token_ids: Iterable[int], skip_special: bool = False) -> str:
        """Token ids to text."""
        ids = checks.token_ids("token_ids", token_ids, self.tokenizer.n_vocab)
        return self.tokenizer.decode(ids, skip_special=skip_special)

    def logits(self, token_ids: Iterable[int]) -> NDArray[np.float32]:
        """The scores of every next token after each token of a text: float32 [n_tokens, n_vocab].

        All of them are finite numbers: FileProblem tells of a model that gives others, and which tensors are damaged.
        Raises UsageError for what are no ids of this vocabulary, ContextOverflowError for more than n_ctx.
        """
        ids = self._checked("token_ids", token_ids)
        parts = list(self._pieces(ids, 0, self._runner.n_batch))
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def logits_in_pieces(self, token_ids: Iterable[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` from the token `first` on, a few at a time: float32 [n, n_vocab].

        Those before are not computed, and no piece takes more than PIECE_BYTES unless one row does.
        """
        n_rows = min(self._runner.n_batch, max(1, PIECE_BYTES // (4 * self.n_vocab)))
        return self._pieces(self._checked("token_ids", token_ids), checks.whole_number("first", first, 0), n_rows)

    @property
    def values(self) -> dict[str, int]:
        """Widths of all values that can be tapped or bound, by their names, in the order in which they are computed."""
        return {name: value.width for name, value in self._runner.graphs.values.items()}

    def run(
        self,
        token_ids: Iterable[int],
        taps: Iterable[str] = ("logits",),
        bind: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Compute a text and look inside: float32 [n_tokens, width] of every value that `taps` name.

        taps:  names of `values`, or patterns of them: "blk.*.attn_out".
        bind:  values that are given rather than computed, float32 [n_tokens, width], by name; and weights that are
               replaced, as bytes of their own format, by the names of their tensors.

        Raises UsageError for names that do not exist and arrays that do not fit.
        """
        ids, usual = self._checked("token_ids", token_ids), self._adapters.usual
        with_virtual("token_ids", ids, usual.n_virtual, self.n_ctx)
        return look_inside(self._scheduler, ids, taps, {} if bind is None else bind, usual)

    def unembed(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Any hidden states through the head, a logit lens (nostalgebraist, 2020).

        states: float32 [n, n_embd], such as `blk.5.l_out` of `run`. Returns logits, float32 [n, n_vocab].
        """
        return unembed(self._scheduler, states, self._adapters.usual)

    def bind(self, memory: Mapping[str, NDArray[np.uint8]]) -> AbstractContextManager[None]:
        """A context in which weights are others: bytes, uint8, of a tensor's own format and size, by its name.

        Nobody else may use the model meanwhile. Raises UsageError for names that do not exist, bytes that do not fit,
        and weights that are bound already.
        """
        return bound_weights(self._scheduler, memory)

    def square_sums(self) -> AbstractContextManager[SquareSums]:
        """A context in which every run adds up the squares of what each linear is given, for importance matrices.

        Gives float64 [n_in] by the name of the linear's weight; of stacked experts, [n_experts, n_in], and in its
        `counts` how many tokens each had. Of the linear that makes logits, only the tokens whose logits are asked for
        count. Nobody else may use the model meanwhile.
        """
        return square_sums(self._scheduler, self._adapters.usual)

    # --- sessions -------------------------------------------------------------------------------------------

    def save_session(self, path: str | os.PathLike[str], text: str | Iterable[int] | Generation, note: str = "") -> int:
        """Write what the cache has of a text, so that it need not be computed again; returns how many tokens that are.

        text:  a prompt, as `generate` takes it, or a generation: its prompt and what it has said. note: to be kept.

        Only the file's owner can read it. Raises FileProblem when it cannot be written.
        """
        from edgellm.engine.session import save_session

        ids, adapters = self._known_text(text)
        return save_session(self._scheduler, checks.path("path", path), ids, adapters, checks.text("note", note))

    def load_session(self, path: str | os.PathLike[str]) -> Session:
        """Take in what `save_session` wrote, with the same adapters in use; texts that begin like it go on from there.

        Raises FormatError for a file that is no session or damaged, FileProblem for one of another model, version, CPU
        or setting, MemoryLimitError where the cache has no room for it.
        """
        from edgellm.engine.session import load_session

        return load_session(self._scheduler, checks.path("path", path), self._adapters.usual)

    def _known_text(self, text: str | Iterable[int] | Generation) -> tuple[list[int], AdapterSet]:
        if isinstance(text, Generation):
            return text.text_ids, text.adapters
        if isinstance(text, list) and any(isinstance(item, Generation) for item in text):
            raise UsageError(f"text is a list of {len(text)} answers; give one of them", parameter="text")
        if isinstance(text, str):
            text = self.tokenize(text, add_special=True, parse_special=True)
        usual = self._adapters.usual
        return with_virtual("text", self._checked("text", text), usual.n_virtual, self.n_ctx), usual

    # --- adapters -------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> dict[str, float]:
        """The adapters that are loaded, in that order, and how much of each texts have that ask for no others."""
        usual = {adapter: scale for adapter, scale in self._adapters.usual.uses}
        return {name: usual.get(adapter, 0.0) for name, adapter in self._adapters.loaded.items()}

    @property
    def n_text(self) -> int:
        """Tokens that a text may have: n_ctx, but for those that an adapter in use puts before it."""
        return self.n_ctx - self._adapters.usual.n_virtual

    def load_adapter(
        self, path: str | os.PathLike[str] | Adapter, name: str | None = None, *, replace: bool = False
    ) -> str:
        """Load an adapter, so that texts can be computed with it; returns its name. It is not used until asked for.

        path:     a PEFT folder, a GGUF adapter, or an `Adapter` in memory.
        name:     by which it is asked for; None takes that of the folder or file.
        replace:  release an adapter that has the name already.

        Nothing is merged: the model's file stays as it is, and several adapters can be loaded. Raises FileProblem (or
        its FormatError, UnsupportedError) for one that cannot be used or was made for another model, UsageError for a
        name that is taken, MemoryLimitError when there is no room for it.
        """
        from edgellm.engine.adapters import load_into

        return load_into(self._adapters, self._scheduler, self._file, path, name, checks.flag("replace", replace))

    def adapter_notes(self, name: str) -> tuple[str, ...]:
        """What a person should know of an adapter: settings of its files that mean nothing here."""
        return self._adapters.find(checks.text("name", name), "name").notes

    def set_adapters(self, adapters: AdapterScales | None) -> None:
        """Say which adapters texts have that ask for no others: scales by name, or names; None or {} for none.

        Those of several change a model one after the other, in the order of their loading. Texts that are being written
        go on with what they began with. Raises UsageError for names that no adapter has and scales that cannot be.
        """
        self._adapters.usual = self._adapters.chosen(checked_adapters({} if adapters is None else adapters))

    def unload(self, name: str) -> None:
        """Release an adapter. Texts that are being written with it keep it to their end.

        Raises UsageError for a name that no adapter has.
        """
        adapter = self._adapters.remove(checks.text("name", name))
        with self._scheduler.alone():
            self._scheduler.forget(adapter)

    def close(self) -> None:
        """End the threads, close the file, and free all memory but the arrays that were handed out.

        A batch that is being computed is waited for. Generations that have not ended do now: whoever goes on iterating
        over one gets a UsageError, and so does whoever uses the model.
        """
        scheduler, embedder = self.__dict__.get("_scheduler"), self.__dict__.get("_embedder")
        if scheduler is not None:
            self.layout  # noqa: B018 - is noted
            scheduler.close()
        if embedder is not None:
            embedder.close()
        self._release()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = "" if "metadata" in self.__dict__ else ", closed"
        return f"<Model {self.path.name}, {self.config.architecture}, n_ctx={self.n_ctx}{closed}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in OF_WRITERS and "_embedder" in self.__dict__:
                raise self._writes_nothing()
            if name in GIVEN_BACK:
                raise UsageError("the model is closed")
            raise AttributeError(f"a {type(self).__name__} has no attribute {name!r}")

    def _release(self) -> None:
        """Forget all that takes memory, and leave nothing of it to generations that have not ended."""
        for name in GIVEN_BACK:
            self.__dict__.pop(name, None)
        with self._lock:
            generations = list(self._generations)
        for generation in generations:
            generation.lose(UsageError("the model is closed"))

    def _pieces(self, ids: list[int], first: int, n_rows: int) -> Iterator[np.ndarray]:
        """Logits from the token `first` on, of up to n_rows tokens in each piece."""
        adapters = self._adapters.usual
        ids, first = with_virtual("token_ids", ids, adapters.n_virtual, self.n_ctx), first + adapters.n_virtual
        scheduler, n_vocab, request = self._scheduler, self.n_vocab, Scores(ids, adapters=adapters)
        scheduler.submit(request)
        try:
            while (start := max(first, request.n_cached)) < len(ids):
                end = min(start + n_rows, len(ids))
                rows = np.empty((end - start, n_vocab), np.float32)
                request.ask(end, rows)
                scheduler.wait(request)
                yield rows
            if request.n_cached < len(ids):  # nobody wants logits, but maybe what happens on the way
                request.ask(len(ids), np.empty((0, n_vocab), np.float32))
                scheduler.wait(request)
        finally:
            scheduler.retire(request)

    def _checked(self, name: str, token_ids: Iterable[int]) -> list[int]:
        """What is to be computed, as a parameter of that name gives it."""
        self._runner  # noqa: B018 - or the model is closed, which is to be said first
        ids = checked_prompt(name, token_ids, self.tokenizer.n_vocab, self.n_ctx, self.config.n_ctx_train)
        if max(ids) >= self.n_vocab:
            raise UsageError(
                f"{name} holds token {max(ids)} ({self.tokenizer.token_name(max(ids))!r:.60}), which was added to the "
                f"vocabulary and never to the model: its embedding has {self.n_vocab} rows; leave it out",
                parameter=name,
            )
        return ids
