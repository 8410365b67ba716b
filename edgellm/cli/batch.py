"""edgellm batch"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.options import lora_option, runtime_options, speculation_options
from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.params import WHEN_FULL, SamplingParams

if TYPE_CHECKING:
    from edgellm.engine import Generation, Model
    from edgellm.engine.openai.batch import BatchRequest
    from edgellm.engine.openai.shapes import ChatShape
    from edgellm.engine.together import Job
    from edgellm.params import RuntimeConfig

MOST_LINE = 64 << 20  # bytes

Work = tuple["BatchRequest", "ChatShape | None"]


@click.command("batch")
@click.argument("requests", type=click.Path(path_type=Path), metavar="IN.jsonl")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT.jsonl",
              help="Where the answers go, a line for each.")  # fmt: skip
@click.option("-m", "--model", metavar="MODEL", shell_complete=complete_models,
              help="The model for all requests.  [default: the one that they name]")  # fmt: skip
@click.option("--when-full", type=click.Choice(WHEN_FULL), default=SamplingParams.when_full, show_default=True,
              help="What happens to an answer that fills the context: it stops, or goes on without the oldest of what "
              "was read, up to its max_tokens.")  # fmt: skip
@click.option("--parallel", type=click.IntRange(1), metavar="N", help="Answers computed at once.  [default: 8]")
@runtime_options
@speculation_options
@lora_option
def command(
    requests: Path,
    output: Path,
    model: str | None,
    when_full: str,
    parallel: int | None,
    runtime: RuntimeConfig,
    adapters: dict[Path, float],
) -> None:
    """Answer many requests, several at once.

    IN.jsonl is in OpenAI's batch format, a request to /v1/chat/completions in each line:

    \b
      {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
       "body": {"model": "smollm2-135m", "messages": [{"role": "user", "content": "Hi"}]}}

    Answers are written as they come, each with the custom_id of its request; what is wrong with a request is its
    answer, and the others go on. Stopped in any way, the same command goes on where it was.
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note
    from edgellm.engine.together import DEFAULT_PARALLEL
    from edgellm.files import refuse_target

    refuse_target(output, [requests])
    if not requests.is_file():
        raise FileProblem(f"{requests}: no such file")
    named, total = _looked_through(requests)
    with _opened(output, requests) as (file, done):
        if len(done) >= total:
            note(f"{output}: all {total} requests are answered already")
            return
        if done:
            note(f"{output}: {len(done)} of {total} requests are answered already")
        name = model or named
        if name is None:
            raise UsageError("no request names a model; name one with --model")
        n_wrong = 0
        with models.load(models.path_of(name), runtime, adapters) as loaded, Progress("answering") as progress:
            for n, (line, is_wrong) in enumerate(_answers(loaded, requests, done, model, name, when_full, parallel or
                                                          DEFAULT_PARALLEL), len(done) + 1):  # fmt: skip
                file.write(line)
                file.flush()
                n_wrong += is_wrong
                progress(n, total, f"{n_wrong} with errors" if n_wrong else "")
        os.fsync(file.fileno())
    if n_wrong:
        note(f"{output}: {n_wrong} of {total} requests could not be answered; their lines say why")


def _lines(requests: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, and their numbers."""
    with open(requests, "rb") as file:
        number = 0
        while line := file.readline(MOST_LINE):
            number += 1
            if len(line) == MOST_LINE and not line.endswith(b"\n"):
                raise FormatError(f"{requests}: line {number} is longer than {MOST_LINE >> 20} MiB")
            if line.strip():
                yield number, line


def _looked_through(requests: Path) -> tuple[str | None, int]:
    """The model that the first request names, and the number of requests."""
    from edgellm.engine.openai.batch import BatchLineError, parse_line

    named: str | None = None
    total = 0
    for number, line in _lines(requests):
        total += 1
        if named is None:
            with contextlib.suppress(BatchLineError):
                named = parse_line(number, line).model
    if not total:
        raise FormatError(f"{requests} holds no request; expected a line of JSON for each")
    return named, total


@contextlib.contextmanager
def _opened(output: Path, requests: Path) -> Iterator[tuple[BinaryIO, set[int]]]:
    """The answers' file, for more of them, and the lines of requests that are answered in it.

    A line that was cut when its writer was killed is taken away. Raises FileProblem while another process writes
    there, UsageError for a file that holds something else.
    """
    from edgellm.engine.openai.batch import line_number

    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "a+b") as file:
        _lock(file, output)
        file.seek(0)
        done: set[int] = set()
        end = 0
        while line := file.readline(MOST_LINE):
            if not line.endswith(b"\n"):
                break
            try:
                number = line_number(json.loads(line))
            except (ValueError, AttributeError, RecursionError):
                number = None
            if number is None:
                raise UsageError(
                    f"{output} holds something else than answers to {requests.name}; choose another name to write"
                )
            done.add(number)
            end += len(line)
        file.truncate(end)
        file.seek(end)
        yield file, done


def _lock(file: BinaryIO, output: Path) -> None:
    with contextlib.suppress(ImportError):  # Windows lets nobody else write an open file anyway
        import fcntl

        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileProblem(f"{output} is being written by another edgellm batch; wait until it has ended") from None
        except OSError:  # a file system without locks
            return


def _answers(
    model: Model, requests: Path, done: set[int], chosen: str | None, name: str, when_full: str, n_parallel: int
) -> Iterator[tuple[bytes, bool]]:
    """The lines of answers as they come, and whether each tells of an error."""
    from edgellm.engine.openai.batch import BatchLineError, BatchRequest, answer_line, error_line, parse_line
    from edgellm.engine.together import Job, together

    wrong: list[bytes] = []
    seen: set[str] = set()

    def jobs() -> Iterator[Job[Work]]:
        for number, line in _lines(requests):
            try:
                request = parse_line(number, line)
                if request.custom_id in seen:
                    raise BatchLineError(f"line {number}: its custom_id stands in a line before it", request.custom_id)
                seen.add(request.custom_id)
                if number in done:
                    continue
                if chosen is None and request.model not in (None, name):
                    raise UsageError(f"model is {request.model!r:.60}, and the batch is answered by {name!r:.60}",
                                     parameter="model")  # fmt: skip
                generations, shape = _begun(model, request, when_full)
            except Exception as problem:
                if number not in done:
                    own_id = request.custom_id if not isinstance(problem, BatchLineError) else None
                    wrong.append(error_line(number, own_id, problem))
                    yield Job((BatchRequest(number, "", {}), None), [])
                continue
            yield Job((request, shape), generations)

    for job in together(jobs(), n_parallel):
        request, shape = job.key
        if shape is None:
            yield wrong.pop(0), True
        elif job.error is not None:
            yield error_line(request.line, request.custom_id, job.error), True
        else:
            yield answer_line(request.line, request.custom_id, shape.completion(job.generations)), False


def _begun(model: Model, request: BatchRequest, when_full: str) -> tuple[list[Generation], ChatShape]:
    body: dict[str, Any] = {key: value for key, value in request.body.items() if key != "stream"}
    extra = body.get("extra_body") or {}
    if when_full != SamplingParams.when_full and isinstance(extra, dict):
        body["extra_body"] = extra = {"when_full": when_full, **extra}
    if extra.get("when_full") == "shift" and body.get("max_tokens") is body.get("max_completion_tokens") is None:
        raise UsageError("max_tokens is missing, and an answer that goes on when the context is full may never end; "
                         "give it", parameter="max_tokens")  # fmt: skip
    return model.openai_begun(body.pop("messages"), body)
