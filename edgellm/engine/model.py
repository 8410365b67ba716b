"""A loaded model: the front door of the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from edgellm import checks, hub
from edgellm.arch import ModelConfig, architecture_of
from edgellm.engine.answer_plan import AnswerPlan
from edgellm.engine.generation import PLAIN_TEXT, Generation
from edgellm.engine.inside import bound_weights, look_inside, square_sums, unembed
from edgellm.engine.prompt import (
    check_biases,
    checked_messages,
    checked_prompt,
    checked_variables,
    has_structure,
    sampling_params,
    spelled_out,
)
from edgellm.engine.request import Scores
from edgellm.engine.runner import Runner
from edgellm.engine.scheduler import Scheduler
from edgellm.errors import FileProblem, FormatError, MemoryLimitError, TemplateError, UsageError
from edgellm.formats.gguf import GGUFFile, StringArray
from edgellm.formats.tensor import Tensor
from edgellm.params import DEFAULT_CONTEXT_LIMIT, RuntimeConfig, SamplingParams
from edgellm.text import ChatTemplate, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.params import SamplingKeywords

NO_WISHES = (None, None, None, None)
PIECE_BYTES = 64 << 20  # of logits at a time, where not all are asked for at once
# What a closed model has no more.
GIVEN_BACK = ("metadata", "tokenizer", "chat_template", "_scheduler", "_runner", "_file")


def load(
    model: str | os.PathLike[str],
    *,
    n_ctx: int | None = RuntimeConfig.n_ctx,
    n_threads: int | None = RuntimeConfig.n_threads,
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
    runtime = RuntimeConfig(n_ctx, n_threads, n_batch, kv_type, activations, cache_bytes)
    return Model(_resolve(model), runtime, checks.function("progress", progress))


class Model:
    """A model in memory. All methods may be called from several threads at once.

    path, metadata:  the file and its metadata.
    config:          its hyperparameters.
    tokenizer:       text to ids and back.
    chat_template:   how the file turns messages into a prompt; None for a base model.
    n_ctx:           tokens that a conversation may hold.
    n_vocab:         tokens it can produce: as many logits as each token has.
    n_threads:       threads that compute.

    A closed model has its numbers still; anything else raises a UsageError.
    """

    path: Path
    metadata: Mapping[str, Any]
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
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
        self._file = _open(path)
        try:
            self.metadata = self._file.metadata
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
        except MemoryError:
            self._let_go()
            raise MemoryLimitError(
                f"{path}: there is not enough memory to run it with n_ctx={runtime.n_ctx} and "
                f"n_batch={runtime.n_batch}; choose smaller ones",
                parameter="n_ctx",
            ) from None
        except FileProblem as problem:
            self._let_go()
            raise type(problem)(f"{path}: {problem}") from None
        except BaseException:
            self._let_go()
            raise

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
        return look_inside(self._scheduler, self._checked("token_ids", token_ids), taps, {} if bind is None else bind)

    def unembed(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Any hidden states through the head, a logit lens (nostalgebraist, 2020).

        states: float32 [n, n_embd], such as `blk.5.l_out` of `run`. Returns logits, float32 [n, n_vocab].
        """
        return unembed(self._scheduler, states)

    def bind(self, memory: Mapping[str, NDArray[np.uint8]]) -> AbstractContextManager[None]:
        """A context in which weights are others: bytes, uint8, of a tensor's own format and size, by its name.

        Nobody else may use the model meanwhile. Raises UsageError for names that do not exist, bytes that do not fit,
        and weights that are bound already.
        """
        return bound_weights(self._scheduler, memory)

    def square_sums(self) -> AbstractContextManager[dict[str, NDArray[np.float64]]]:
        """A context in which every run adds up the squares of what each linear is given, for importance matrices.

        Gives float64 [n_in] by the name of the linear's weight. Of the one that makes logits, only the tokens whose
        logits are asked for count. Nobody else may use the model meanwhile.
        """
        return square_sums(self._scheduler)

    @overload
    def generate(self, prompt: str | Iterable[int], **sampling: Unpack[SamplingKeywords]) -> Generation: ...

    @overload
    def generate(
        self, prompt: str | Iterable[int], *, n: int, **sampling: Unpack[SamplingKeywords]
    ) -> list[Generation]: ...

    @spelled_out
    def generate(
        self, prompt: str | Iterable[int], *, n: int | None = None, **sampling: Unpack[SamplingKeywords]
    ) -> Generation | list[Generation]:
        """Continue a prompt, a plain text or token ids. The keywords are those of `SamplingParams`.

        n:  give a list of so many different answers. The prompt is computed once, and the seeds are `seed`,
            `seed + 1` and so on.

        Raises UsageError for what cannot work, ContextOverflowError when the prompt alone does not fit.
        """
        params = sampling_params(sampling)
        if isinstance(prompt, str):
            prompt = self.tokenize(prompt, add_special=True, parse_special=True)
        plan = PLAIN_TEXT
        if has_structure(params):
            from edgellm.engine.asking import plan_of_text  # seldom needed

            plan = plan_of_text(params, self.tokenizer, self.n_vocab)
        return self._answers(self._checked("prompt", prompt), params, n, plan)

    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        template_variables: Mapping[str, Any] | None = None,
        *,
        tools: Iterable[Any] | None = None,
        tool_choice: Any = None,
        think: bool | None = None,
        think_budget: int | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Generation: ...

    @overload
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        template_variables: Mapping[str, Any] | None = None,
        *,
        n: int,
        tools: Iterable[Any] | None = None,
        tool_choice: Any = None,
        think: bool | None = None,
        think_budget: int | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> list[Generation]: ...

    @spelled_out
    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        template_variables: Mapping[str, Any] | None = None,
        *,
        n: int | None = None,
        tools: Iterable[Any] | None = None,
        tool_choice: Any = None,
        think: bool | None = None,
        think_budget: int | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Generation | list[Generation]:
        """Answer the last of some messages [{"role": "user", "content": ...}, ...], by the model's chat template.

        template_variables:  what the template is told beside the messages, such as {"enable_thinking": False}.
        tools:         Python functions, or schemas as OpenAI has them. The model may call some: see `tool_calls` of the
                       answer, and `edgellm.run_tools`, which does what they ask for.
        tool_choice:   "auto" (the model may), "required" (it must), "none", or the name of the tool that it must call.
        think:         whether the model thinks before it answers; None is as its template has it.
        think_budget:  tokens of a thought at most.
        Other keywords are those of `SamplingParams`, and `n` as for `generate`.

        Raises TemplateError when the model has none or its template refuses the messages, UsageError for what cannot
        work, ContextOverflowError when the messages do not fit.
        """
        params = sampling_params(sampling)
        if self.chat_template is None:
            raise TemplateError(
                f"{self.path.name} is a base model without a chat template; use generate() to continue plain text"
            )
        messages, variables = checked_messages(messages), checked_variables(template_variables)
        wishes = (tools, tool_choice, think, think_budget)
        if wishes == NO_WISHES and not has_structure(params) and self.chat_template.reasoning is None:
            prompt: str = self.chat_template.render(messages, add_generation_prompt=True, **variables)
            plan = PLAIN_TEXT
        else:
            from edgellm.engine.asking import Wishes, prompt_and_plan  # seldom needed

            prompt, plan = prompt_and_plan(
                self.chat_template, messages, variables, Wishes(*wishes), params, self.tokenizer, self.n_vocab
            )
        ids = self.tokenize(prompt, add_special=False, parse_special=True)
        return self._answers(self._checked("prompt", ids), params, n, plan)

    def close(self) -> None:
        """End the threads, let go of the file, and give back all memory but the arrays that were handed out.

        A batch that is being computed is waited for. Generations that have not ended do now: whoever goes on iterating
        over one gets a UsageError, and so does whoever uses the model.
        """
        scheduler = self.__dict__.get("_scheduler")
        if scheduler is not None:
            scheduler.close()
        self._let_go()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = "" if "_runner" in self.__dict__ else ", closed"
        return f"<Model {self.path.name}, {self.config.architecture}, n_ctx={self.n_ctx}{closed}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in GIVEN_BACK:
                raise UsageError("the model is closed")
            raise AttributeError(f"a {type(self).__name__} has no attribute {name!r}")

    def _let_go(self) -> None:
        """Forget all that takes memory, and leave nothing of it to generations that have not ended."""
        for name in GIVEN_BACK:
            self.__dict__.pop(name, None)
        with self._lock:
            generations = list(self._generations)
        for generation in generations:
            generation.lose(UsageError("the model is closed"))

    def _answers(
        self, ids: list[int], params: SamplingParams, n: int | None, plan: AnswerPlan
    ) -> Generation | list[Generation]:
        check_biases(params, self.n_vocab)
        if n is None:
            return self._generate(ids, params, plan)
        first = params.seed
        seeds = [None if first is None else first + i for i in range(checks.whole_number("n", n, 1))]
        generations = [self._generate(ids, replace(params, seed=seed), plan.copy()) for seed in seeds]
        Generation.together(generations)
        return generations

    def _generate(self, ids: list[int], params: SamplingParams, plan: AnswerPlan) -> Generation:
        generation = Generation(self._scheduler, self.tokenizer, ids, params, self.n_ctx, plan)
        with self._lock:
            self._generations.add(generation)
        return generation

    def _pieces(self, ids: list[int], first: int, n_rows: int) -> Iterator[np.ndarray]:
        """Logits from the token `first` on, of up to n_rows tokens in each piece."""
        scheduler, n_vocab, request = self._scheduler, self.n_vocab, Scores(ids)
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


def _resolve(model: str | os.PathLike[str]) -> Path:
    """The file that a path or a name means."""
    checks.path("model", model, "a path or the name of a model")
    return hub.resolve(model)


def _open(path: Path) -> GGUFFile:
    try:
        return GGUFFile.open(path)
    except MemoryError:
        raise MemoryLimitError(f"{path}: there is not enough memory to open it") from None


def _context(wanted: int | None, n_ctx_train: int) -> int:
    if wanted is None:
        return min(n_ctx_train, DEFAULT_CONTEXT_LIMIT)
    if wanted > n_ctx_train:
        raise UsageError(
            f"a context of {wanted} tokens was asked for; this model was trained on {n_ctx_train}: "
            f"choose n_ctx up to that",
            parameter="n_ctx",
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


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file or catalogue model; the file may hold a vocabulary only.

    Raises FileProblem (or its FormatError, UnsupportedError) for a file without a tokenizer that edgellm knows.
    """
    with _open(_resolve(path)) as file:
        # A tokenizer may be kept for long, and the file replaced meanwhile.
        is_array = (StringArray, np.ndarray)
        own = {key: value.copy() if isinstance(value, is_array) else value for key, value in file.metadata.items()}
    return load_tokenizer(own)
