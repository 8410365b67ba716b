"""Vectors and ranks of texts: the part of a model that reads and does not write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from edgellm import checks
from edgellm.arch import Architecture, ModelConfig, architecture_of
from edgellm.engine.pooling import POOLINGS, normalized, pooling_of
from edgellm.engine.runner import Runner
from edgellm.engine.scheduler import Scheduler
from edgellm.engine.tasks import Tasks
from edgellm.errors import ContextOverflowError, UsageError
from edgellm.formats.gguf import GGUFFile, get_value
from edgellm.params import RuntimeConfig
from edgellm.text import Tokenizer
from edgellm.text.provenance import Text as Written
from edgellm.text.provenance import own_of, written

if TYPE_CHECKING:
    from edgellm.engine.embedder import Embedder, Text

Given = str | Sequence[int]  # a text, or its token ids
RERANK_TEMPLATE = "tokenizer.chat_template.rerank"
Pooling = Literal["none", "mean", "cls", "last"]


class MakesVectors:
    """What `Model` has of it. A model that was made for this alone is loaded without a cache, and writes no text."""

    path: Path
    metadata: Mapping[str, Any]
    tokenizer: Tokenizer
    config: ModelConfig
    n_ctx: int
    n_vocab: int
    _reads_only: bool  # it makes no text
    _file: GGUFFile
    _runtime: RuntimeConfig
    _runner: Runner
    _scheduler: Scheduler
    _embedder: Embedder

    def _vectors(self) -> Embedder:
        """The programs for whole texts; a model that writes text has them from the first use on."""
        if "_embedder" not in self.__dict__:
            runner, architecture = self._runner, architecture_of(self.metadata)
            with self._scheduler.alone():
                self._make_embedder(architecture, beside=runner, alone=self._scheduler.alone)
        return self._embedder

    def _make_embedder(self, architecture: Architecture, **more: Any) -> None:
        from edgellm.engine.embedder import Embedder  # which models for chat seldom need

        self._embedder = Embedder(self._file, architecture, self.config, self._runtime, **more)

    def _writes_nothing(self) -> UsageError:
        """The error of a model that is asked to write."""
        what, instead = "makes vectors of texts", "embed(texts) or `edgellm embed`"
        ranks = pooling_of(self.metadata)[1]
        if ranks and not self._makes_one_score():
            return self._classifies()
        if ranks:
            what, instead = "ranks texts", "rank(query, texts) or `edgellm embed --rank`"
        return UsageError(
            f"{self.path.name} {what} and writes none: use {instead}, or load a model for chat (`edgellm list`)"
        )

    @overload
    def embed(
        self, texts: Given | Iterable[Given], *, task: str | None = ..., prompt: str | None = ...,
        pooling: Literal["mean", "cls", "last"] | None = ..., normalize: bool = ..., dimensions: int | None = ...,
        truncate: bool = ...,
    ) -> NDArray[np.float32]: ...  # fmt: skip

    @overload
    def embed(
        self, texts: Given | Iterable[Given], *, pooling: Literal["none"], task: str | None = ...,
        prompt: str | None = ..., normalize: bool = ..., dimensions: int | None = ..., truncate: bool = ...,
    ) -> list[NDArray[np.float32]]: ...  # fmt: skip

    def embed(
        self,
        texts: Given | Iterable[Given],
        *,
        task: str | None = None,
        prompt: str | None = None,
        pooling: Pooling | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """A vector for each text, float32 [n_texts, n]; one text alone gives one row.

        texts:       a text may be given as token ids, which are computed as they are: no other tokens come around them.
        task:        what the vectors are for, by a name that the model knows: "query", "document", ... It puts a
                     prompt before each text. prompt: the same in words of your own.
        pooling:     "mean" of the tokens' states, that of the first ("cls") or the "last"; None takes the model's own.
                     With "none" there is a vector for every token: a list of float32 [n_tokens, n].
        normalize:   give all vectors the length 1, so that their products are cosines.
        dimensions:  keep so many numbers of each, for models that were trained for it (Matryoshka).
        truncate:    cut texts that are longer than n_ctx tokens, which are refused otherwise.

        The bits do not depend on what other texts there are. Raises UsageError for what cannot work,
        ContextOverflowError for a text that is too long.
        """
        found = checks.texts_or_ids("texts", texts, self.n_vocab)
        embedder = self._vectors()
        own, ranks = pooling_of(self.metadata)
        chosen = self._pooling(own, ranks, pooling)
        n = checks.whole_number("dimensions", dimensions, 1, embedder.width) if dimensions is not None else None
        normalize = checks.flag("normalize", normalize)
        if prompt is not None and task is not None:
            raise UsageError("both task and prompt are given; one says what stands before the texts", parameter="task")
        before = self.tasks.prompt(task) if prompt is None else checks.text("prompt", prompt)
        if (task or prompt) and any(not isinstance(text, str) for text in found):
            name = "task" if task else "prompt"
            raise UsageError(
                f"{name} is given, which puts words before texts, and texts holds token ids, which are computed as "
                f"they are; leave {name} out, or give texts",
                parameter=name,
            )
        cuts = checks.flag("truncate", truncate)
        inputs = [
            self._text(before + text, i, cuts) if isinstance(text, str) else self._as_it_is(text, i, cuts)
            for i, text in enumerate(found)
        ]
        if chosen == "none":
            rows: list[Any] = [None] * len(inputs)
            for i, states in embedder.states(inputs):
                rows[i] = _finished(states.copy(), n, normalize)
            return rows
        return _finished(embedder.rows(inputs, chosen), n, normalize)

    def rank(self, query: str, texts: str | Iterable[str], *, truncate: bool = False) -> NDArray[np.float32]:
        """How well each text answers a query: float32 [n_texts], larger is better.

        Of a reranker, these are the scores of its classifier, any numbers; of a model that makes vectors, cosines of
        the query's and each text's. truncate: cut texts that are too long.

        Raises UsageError for a model that does neither, ContextOverflowError for a query and text that are too long.
        """
        query = checks.text("query", query)
        found = [texts] if isinstance(texts, str) else checks.texts("texts", texts)
        truncate = checks.flag("truncate", truncate)
        own, ranks = pooling_of(self.metadata)
        if not ranks:
            return self._cosines(own, query, found, truncate)
        embedder = self._vectors()
        assert own is not None
        if not self._makes_one_score():
            raise self._classifies()
        pairs = [self._pair(query, text, i, truncate) for i, text in enumerate(found)]
        return self._one_score(embedder.rows(pairs, own))

    @property
    def tasks(self) -> Tasks:
        """The prompts that stand before texts, by task."""
        return Tasks(self.metadata)

    def _cosines(self, pooling: str | None, query: str, texts: list[str], truncate: bool) -> NDArray[np.float32]:
        if not self._reads_only:
            raise UsageError(
                f"{self.path.name} is a model for chat and has no head that ranks; load a reranker, or a model that "
                "makes vectors (`edgellm list`)"
            )
        side = self.tasks.side
        of_query = self.embed([query], prompt=side("query"), truncate=truncate)
        return self.embed(texts, prompt=side("document"), truncate=truncate) @ of_query[0]

    def _pooling(self, own: str | None, ranks: bool, asked: str | None) -> str:
        if asked is not None:
            chosen = checks.one_of("pooling", asked, POOLINGS)
        elif ranks and self._makes_one_score():
            raise UsageError(
                f"{self.path.name} is a reranker: it scores pairs of texts and was not trained to make vectors; use "
                "rank(query, texts)"
            )
        elif own is None and not self._reads_only:
            raise UsageError(
                f"{self.path.name} is a model for chat, and its file does not say how the states of tokens become one "
                "vector: choose pooling mean or last, or load a model that was trained for it (`edgellm list`)",
                parameter="pooling",
            )
        else:
            chosen = own or "mean"
        if ranks and chosen != "none" and not self._makes_one_score():
            raise self._classifies()
        if ranks and chosen != "none":
            raise UsageError(
                f"{self.path.name} is a reranker, whose head makes scores of pooled texts: use rank(query, texts), or "
                "pooling='none' for the states of its tokens",
                parameter="pooling",
            )
        return chosen

    def _text(self, text: str, index: int, truncate: bool) -> Text:
        from edgellm.engine.embedder import Text

        ids = self.tokenizer.encode(text, add_special=True)
        if not ids:
            raise UsageError(f"texts[{index}] is empty, and the model puts no token around a text; leave it out")
        if len(self._known(ids)) <= self.n_ctx:
            return Text(ids)
        if not truncate:
            raise self._too_long(f"texts[{index}]", len(ids))
        n_end = self.tokenizer.n_end
        return Text(ids[: self.n_ctx - n_end] + ids[len(ids) - n_end :])

    def _as_it_is(self, ids: list[int], index: int, truncate: bool) -> Text:
        """Token ids that were given in place of a text."""
        from edgellm.engine.embedder import Text

        if not ids:
            raise UsageError(f"texts[{index}] is empty; expected at least one token", parameter="texts")
        if len(ids) > self.n_ctx and not truncate:
            raise self._too_long(f"texts[{index}]", len(ids))
        return Text(ids[: self.n_ctx])

    def _pair(self, query: str, text: str, index: int, truncate: bool) -> Text:
        """A query and a text, as the model was trained to find them in one. What is too long loses its end."""
        pair = self._whole_pair(query, text)
        while (too_many := len(pair.token_ids) - self.n_ctx) > 0:
            if not truncate:
                raise self._too_long(f"query and texts[{index}] together", len(pair.token_ids))
            if not text:
                raise self._too_long("query", len(pair.token_ids))
            text = text[: len(text) - max(1, len(text) * too_many // len(pair.token_ids))]
            pair = self._whole_pair(query, text)
        return pair

    def _whole_pair(self, query: str, text: str) -> Text:
        from edgellm.engine.embedder import Text

        template = get_value(self.metadata, RERANK_TEMPLATE, str, "")
        if not template:
            ids, segments = self.tokenizer.encode_pair(query, text)
            return Text(self._known(ids), segments)
        return Text(self._known(self.tokenizer.encode(_filled(template, query, text), parse_special=True)))

    def _known(self, ids: list[int]) -> list[int]:
        """The same ids. Raises UsageError for one that has no embedding: it was added to the vocabulary alone."""
        if max(ids) >= self.n_vocab:
            name = self.tokenizer.token_name(max(ids))
            raise UsageError(
                f"the texts hold token {max(ids)} ({name!r:.60}), which was added to the vocabulary and never to the "
                f"model: its embedding has {self.n_vocab} rows; leave it out"
            )
        return ids

    def _too_long(self, what: str, n_tokens: int) -> ContextOverflowError:
        return ContextOverflowError(
            f"{what} has {n_tokens} tokens, and {self.path.name} takes {self.n_ctx}; cut it into passages, or set "
            "truncate to leave out what comes after",
            parameter="truncate",
        )

    def _one_score(self, scores: np.ndarray) -> NDArray[np.float32]:
        """A score for each pair; of two classes, yes and no, the probability of yes."""
        if scores.shape[1] == 1:
            return np.ascontiguousarray(scores[:, 0])
        yes = self._labels.index("yes")
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(scores[:, 1 - yes].astype(np.float64) - scores[:, yes]))).astype(np.float32)

    def _makes_one_score(self) -> bool:
        """Whether what the classifier says of a text is one number, by which texts can be ranked."""
        n_classes = self._vectors().width
        return n_classes == 1 or (n_classes == 2 and sorted(self._labels) == ["no", "yes"])

    def _classifies(self) -> UsageError:
        """The error of a classifier whose classes are in no order, whatever it is asked for."""
        labels = ", ".join(f"{label:.40}" for label in self._labels[:4]) or "which have no names"
        more = ", ..." if len(self._labels) > 4 else ""
        return UsageError(
            f"{self.path.name} is a classifier of {self._vectors().width} classes ({labels}{more}): it says of which "
            "class a text is, and edgellm gives no scores of classes; to rank texts load a reranker, for vectors a "
            "model that makes them (`edgellm list`)"
        )

    @property
    def _labels(self) -> list[str]:
        key = f"{get_value(self.metadata, 'general.architecture', str)}.classifier.output_labels"
        return [str(label).lower() for label in self.metadata.get(key, ())]


def _finished(rows: np.ndarray, n: int | None, normalize: bool) -> np.ndarray:
    rows = rows if n is None else np.ascontiguousarray(rows[:, :n])
    return normalized(rows) if normalize else rows


def _filled(template: str, query: str, text: str) -> str:
    """A template with its two places filled; what is filled in spells no control tokens."""
    parts: list[str] = []
    for i, piece in enumerate(template.split("{query}")):
        parts += [query] if i else []
        for j, own in enumerate(piece.split("{document}")):
            parts += [text] if j else []
            parts.append(written(own))
    return Written("".join(parts), b"".join(own_of(part) for part in parts))
