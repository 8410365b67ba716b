"""All examples of some files, encoded for one model, with what became of every line."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgellm import checks
from edgellm.errors import EdgellmError, FormatError, TemplateError, UsageError
from edgellm.train.data.config import DataConfig
from edgellm.train.data.encoder import Asked, Encoded, Encoder, Judged, Pair
from edgellm.train.data.examples import Example, Text
from edgellm.train.data.files import Record, read_records
from edgellm.train.data.kinds import Kind, kind_of, unused_keys
from edgellm.train.data.values import Values
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.documents import Documents

PROBLEMS_KEPT = 3


@dataclass
class Recognised:
    """What a file was taken for.

    name, what:  its keys and its examples, for people: "messages", "chats".
    n:           records that have been read.
    unused:      keys that nobody looked at, with the number of records that have them.
    """

    path: Path
    name: str = ""
    what: str = ""
    n: int = 0
    unused: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.name}: {self.what}, {self.n:,} {'example' if self.n == 1 else 'examples'}"


@dataclass
class Summary:
    """What was found in the data, and what became of it.

    files:      what each file was taken for.
    n_read:     records, without bad ones.
    n_bad:      records that cannot be used; problems: the first of them, with the reasons.
    n_long:     examples with a document that is longer than may be: cut, or left out (n_long_dropped).
    n_untrained: examples that are left out because nothing in them would be learnt.
    n_same:     pairs that are left out because their answers are the same, as far as they are kept.
    n_good, n_not_good:  answers that are judged so.
    n_tokens, n_targets:  tokens of all documents that are kept, and how many of them are learnt.
    lengths:    of all documents before any was cut.
    notes:      what a person should know, with the number of examples that it is true of.
    """

    files: list[Recognised] = field(default_factory=list)
    n_read: int = 0
    n_bad: int = 0
    problems: list[str] = field(default_factory=list)
    n_long: int = 0
    n_long_dropped: int = 0
    n_untrained: int = 0
    n_same: int = 0
    n_good: int = 0
    n_not_good: int = 0
    n_tokens: int = 0
    n_targets: int = 0
    lengths: list[int] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass
class Dataset:
    """Examples in the order of their files, and what is to be said about them.

    examples:  Documents to imitate, or Pairs, or Judged answers, or prompts that are Asked, as the files held; places:
               where each stands.
    """

    examples: list[Encoded]
    places: list[str]
    summary: Summary

    def __len__(self) -> int:
        return len(self.examples)

    def fingerprint(self) -> str:
        """Tells data of other tokens, targets, judgements or order, for a run that is gone on with. 64 hex digits."""
        digest = hashlib.sha256()
        for example in self.examples:
            for part in documents_of(example):
                for array in (part.lengths, part.ids, part.targets, part.weights):
                    digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
            digest.update(_judgement(example).encode())
        return digest.hexdigest()


def read_dataset(
    paths: Iterable[str | Path],
    vocabulary: Vocabulary,
    wanted: Sequence[Kind],
    config: DataConfig | None = None,
    progress: Callable[[int], object] | None = None,
) -> Dataset:
    """Read all examples of some files, of one of the kinds that are wanted (see `kinds`).

    progress(n) is called with the number of examples so far.
    Raises FormatError for a file or line that cannot be used, UsageError when nothing is left to learn.
    """
    config = config or DataConfig()
    found = [checks.path("data", path) for path in paths]
    if not found:
        raise UsageError("data is empty; expected at least one file", parameter="data")
    data = Dataset([], [], Summary())
    encoder = Encoder(vocabulary, config)
    for place, example in read_examples(found, wanted, config.skip_bad, data.summary):
        try:
            encoding = encoder.encode(example)
        except (TemplateError, UsageError) as error:
            _meet(f"{place}: {error}", config.skip_bad, data.summary, error)
            continue
        summary = data.summary
        summary.files[-1].unused.update(encoder.unused_keys(example))
        summary.n_read += 1
        summary.lengths += encoding.lengths
        summary.n_long += encoding.n_long > 0 and not _is_file(example)
        summary.n_long_dropped += encoding.left_out == "long"
        summary.n_untrained += encoding.left_out == "untrained"
        summary.n_same += encoding.left_out == "same"
        if isinstance(encoding.encoded, Judged):
            summary.n_good += encoding.encoded.good
            summary.n_not_good += not encoding.encoded.good
        if encoding.encoded is not None:
            data.examples += _in_pieces(encoding.encoded) if _is_file(example) else [encoding.encoded]
            data.places += [place] * (len(data.examples) - len(data.places))
        if progress:
            progress(summary.n_read)
    data.summary.notes = encoder.notes
    for part in (part for example in data.examples for part in documents_of(example)):
        data.summary.n_tokens += len(part)
        data.summary.n_targets += part.n_targets
    _check_not_empty(data, config)
    return data


def read_examples(
    paths: Iterable[Path], wanted: Sequence[Kind], skip_bad: bool, summary: Summary
) -> Iterator[tuple[str, Example]]:
    """The examples of some files with their places; `summary` is told what the files are, and what is bad.

    All records of a file are of one kind, its first one's.
    """
    for path in paths:
        file = Recognised(path)
        summary.files.append(file)
        kind: Kind | None = None
        for record in read_records(path):
            try:
                kind = _same_kind(record, kind, wanted)
                example = kind.make(Values(record.values, record.is_row))
            except UsageError as error:
                _meet(f"{record.place}: {error}", skip_bad, summary, error)
                continue
            file.name, file.what = kind.name, kind.what
            file.n += 1
            file.unused.update(unused_keys(record.values, kind))
            if record.is_file and isinstance(example, Text):
                example = Text(example.text, in_pieces=True)
                file.name = "plain text"
            yield record.place, example


def documents_of(example: Encoded) -> tuple[Documents, ...]:
    """The documents of an example, whatever it is."""
    if isinstance(example, Pair):
        return example.chosen, example.rejected
    return (example.documents,) if isinstance(example, (Judged, Asked)) else (example,)


def _judgement(example: Encoded) -> str:
    """What an example says beside its documents."""
    if isinstance(example, Pair):
        return "" if example.margin is None else repr(example.margin)
    if isinstance(example, Asked):
        return json.dumps(dict(example.prompt.columns), sort_keys=True, default=str)
    return repr(example.good) if isinstance(example, Judged) else ""


def _same_kind(record: Record, first: Kind | None, wanted: Sequence[Kind]) -> Kind:
    if record.problem:
        raise UsageError(record.problem)
    kind = kind_of(record.values, wanted)
    if first is not None and kind is not first:
        raise UsageError(
            f"is an example with {kind.name}, and those before it have {first.name}; put them into files of their own"
        )
    return kind


def _meet(text: str, skip_bad: bool, summary: Summary, error: EdgellmError) -> None:
    """Count a bad record, or raise."""
    if not skip_bad:
        kind = TemplateError if isinstance(error, TemplateError) else FormatError
        raise kind(text, parameter=error.parameter) from None
    summary.n_bad += 1
    if len(summary.problems) < PROBLEMS_KEPT:
        summary.problems.append(text)


def _is_file(example: Example) -> bool:
    return isinstance(example, Text) and example.in_pieces


def _in_pieces(encoded: Encoded) -> list[Encoded]:
    return list(encoded.apart()) if isinstance(encoded, Documents) else [encoded]


def _check_not_empty(data: Dataset, config: DataConfig) -> None:
    if data.examples:
        return
    summary = data.summary
    reasons = []
    if summary.n_bad:
        reasons.append(f"{summary.n_bad} are bad ({summary.problems[0]})")
    if summary.n_long_dropped:
        reasons.append(f"{summary.n_long_dropped} are longer than {config.max_length} tokens (max_length)")
    if summary.n_untrained:
        cut = f"; {summary.n_long} were cut to {config.max_length} tokens (max_length)" if summary.n_long else ""
        reasons.append(f"{summary.n_untrained} have no token that is trained{cut}")
    if summary.n_same:
        cut = f", cut to {config.max_length} tokens (max_length)" if summary.n_long else ""
        reasons.append(f"{summary.n_same} are pairs of two answers that are the same{cut}")
    names = ", ".join(str(file.path) for file in summary.files)
    raise UsageError(
        f"there is nothing to learn in {names:.200}: {'; '.join(reasons) or 'no examples'}",
        parameter="max_length",
    )
