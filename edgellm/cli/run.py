"""edgellm run"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.asking import Asking, asking_options
from edgellm.cli.options import lora_option, runtime_options
from edgellm.cli.sampling import SectionedCommand, sampling_options, sampling_params
from edgellm.params import DEFAULT_MODEL

if TYPE_CHECKING:
    from edgellm.cli.asker import Asker
    from edgellm.engine import Model
    from edgellm.params import RuntimeConfig, SamplingParams


@click.command("run", cls=SectionedCommand)
@click.argument("model", required=False)
@click.option("-p", "--prompt", metavar="TEXT", help="Answer TEXT and exit; - reads it from standard input.")
@click.option("--system", metavar="TEXT", help="How the model should behave; comes before the conversation.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the model's chat template.")
@asking_options
@sampling_options
@runtime_options
@lora_option
@click.option("--stats", is_flag=True, help="Say how fast it was (on standard error).")
@click.option("-v", "--verbose", is_flag=True, help="Say which chat template is used.")
def command(
    model: str | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    asking: Asking,
    runtime: RuntimeConfig,
    adapters: dict[Path, float],
    stats: bool,
    verbose: bool,
    **typed: Any,
) -> None:
    """Talk to a model, or answer one prompt.

    MODEL is a name (see `edgellm list`), hf:ORG/REPO/FILE.gguf, or the path of a GGUF file. A model that is
    not on this machine yet is fetched first.

    On a terminal this is a chat; /help tells its commands, Ctrl-C stops an answer, Ctrl-D leaves. With -p, or
    with text on standard input, only the answer is printed:

    \b
      edgellm run -p "Name three rivers"
      edgellm run -p "Summarise this:" < notes.txt
      edgellm run gemma3-270m --raw -p "Once upon a time" -n 50
      edgellm run MODEL --lora ./my-adapter --lora ./style.gguf=0.5
    """
    from edgellm.cli import chat, models
    from edgellm.cli.prompt import read_prompt
    from edgellm.cli.terminal import note

    sampling = sampling_params(typed)
    if model is None:
        model = DEFAULT_MODEL
        note(f"no model named, using {model}")
    path = models.path_of(model)
    text = read_prompt(prompt, may_be_empty=raw and prompt == "")  # a text from its beginning
    with asking.servers() as servers, models.load(path, runtime, adapters) as loaded:
        asker = asking.asker(loaded, raw, servers)
        if text is None:
            chat.Chat(loaded, sampling, system=system, raw=raw, stats=stats, verbose=verbose, asker=asker).loop()
        else:
            _answer(loaded, asker, text, sampling, system, raw, stats, verbose)


def _answer(
    model: Model,
    asker: Asker,
    text: str,
    sampling: SamplingParams,
    system: str | None,
    raw: bool,
    stats: bool,
    verbose: bool,
) -> None:
    """Print the answer to one prompt."""
    from edgellm.cli.answer import larger_context, stream, tell_stats
    from edgellm.cli.conversation import Conversation
    from edgellm.cli.template import template_of
    from edgellm.cli.terminal import note, show_answer

    settings = dict(vars(sampling))
    if template_of(model, raw, system, verbose):
        generation = asker.chat(Conversation(system).with_user(text).messages(), **settings)
    else:
        generation = model.generate(text, **settings)
    stream(generation)
    show_answer("\n")
    if generation.finish_reason == "cancelled":
        raise KeyboardInterrupt
    if generation.finish_reason == "context":
        note(f"the context of {model.n_ctx} tokens is full, so the answer stops here; {larger_context(model)}")
    if stats:
        tell_stats(generation.stats)
