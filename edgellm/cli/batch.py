"""edgellm batch"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.batch_files import Requests, looked_through, opened
from edgellm.cli.completing import complete_models
from edgellm.cli.options import lora_option, runtime_options, speculation_options
from edgellm.errors import UsageError
from edgellm.params import WHEN_FULL, SamplingParams

if TYPE_CHECKING:
    from edgellm.engine import Generation, Model
    from edgellm.engine.openai.batch import BatchRequest
    from edgellm.engine.openai.shapes import ChatShape
    from edgellm.engine.together import Job
    from edgellm.params import RuntimeConfig

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
    answer, and the others go on. Stopped in any way, the same command goes on where it was; to have a request
    answered once more, take its line out of OUT.jsonl. Ends with 1 when OUT.jsonl has nothing but errors in the end,
    in however many runs it was written.
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note
    from edgellm.engine.together import DEFAULT_PARALLEL
    from edgellm.files import refuse_target

    if str(output) == "-":
        raise UsageError("-o is -; expected the name of a file: what is answered is read there by the next run")
    refuse_target(output, [requests])
    asked = looked_through(requests)
    name, total = model or asked.model, len(asked)
    with opened(output, asked, name) as written:
        n_before = len(written.answered)
        if n_before >= total:
            note(f"{output}: all {total} requests are answered already")
        else:
            if n_before:
                note(f"{output}: {n_before} of {total} requests are answered already")
            if name is None:
                raise UsageError("no request names a model; name one with --model")
            with models.load(models.path_of(name), runtime, adapters) as loaded, Progress("answering") as progress:
                done = set(written.answered)
                answers = _answers(loaded, asked, done, model, name, when_full, parallel or DEFAULT_PARALLEL)
                for n, (number, line, is_wrong) in enumerate(answers, n_before + 1):
                    written.add(line)
                    written.count(number, is_wrong)
                    progress(n, total, f"{written.n_wrong} with errors" if written.n_wrong else "")
        n_wrong = written.n_wrong
    if n_wrong:
        note(f"{output}: {n_wrong} of {total} requests could not be answered; their lines say why")
    if n_wrong == total:
        raise SystemExit(1)


def _answers(
    model: Model, requests: Requests, done: set[int], chosen: str | None, name: str, when_full: str, n_parallel: int
) -> Iterator[tuple[int, bytes, bool]]:
    """Answers as they come: the number of the request's line, the line to write, whether it tells of an error."""
    from edgellm.engine.openai.batch import BatchLineError, BatchRequest, answer_line, error_line, parse_line
    from edgellm.engine.together import Job, together

    wrong: list[bytes] = []
    seen: dict[str, int] = {}

    def jobs() -> Iterator[Job[Work]]:
        for number, line in requests.lines():
            try:
                request = parse_line(number, line)
                if (before := seen.setdefault(request.custom_id, number)) != number:
                    raise BatchLineError(
                        f"line {number}: line {before} has the custom_id {request.custom_id!r:.60} too",
                        request.custom_id,
                    )
                if number in done:
                    continue
                if chosen is None and request.model not in (None, name):
                    raise UsageError(f"model is {request.model!r:.60}, and the batch is answered by {name!r:.60}",
                                     parameter="model")  # fmt: skip
                generations, shape = _begun(model, request, name, when_full)
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
            yield request.line, wrong.pop(0), True
        elif job.error is not None:
            yield request.line, error_line(request.line, request.custom_id, job.error), True
        else:
            completion = shape.completion(job.generations)
            yield request.line, answer_line(request.line, request.custom_id, completion), False


def _begun(model: Model, request: BatchRequest, name: str, when_full: str) -> tuple[list[Generation], ChatShape]:
    body: dict[str, Any] = {key: value for key, value in request.body.items() if key != "stream"}
    body["model"] = name  # who answers, whatever was asked for
    extra = body.get("extra_body") or {}
    if not isinstance(extra, dict):
        return model.openai_begun(body.pop("messages"), body)  # which says what is wrong
    if when_full != SamplingParams.when_full:
        body["extra_body"] = extra = {"when_full": when_full, **extra}
    if extra.get("when_full") == "shift" and body.get("max_tokens") is body.get("max_completion_tokens") is None:
        raise UsageError("max_tokens is missing, and an answer that goes on when the context is full may never end; "
                         "give it", parameter="max_tokens")  # fmt: skip
    return model.openai_begun(body.pop("messages"), body)
