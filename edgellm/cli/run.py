"""edgellm run"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.asking import Asking, asking_options
from edgellm.cli.completing import complete_models
from edgellm.cli.options import lora_option, runtime_options, speculation_options, template_option
from edgellm.cli.sampling import SectionedCommand, sampling_options, sampling_params
from edgellm.errors import UsageError
from edgellm.params import DEFAULT_MODEL

if TYPE_CHECKING:
    from edgellm.cli.asker import Asker
    from edgellm.cli.chat.kept import Kept
    from edgellm.cli.session import SessionFile
    from edgellm.engine import Model
    from edgellm.params import RuntimeConfig, SamplingParams

WHEN_FULL = ("stop", "drop", "shift")  # see `edgellm.cli.chat.window`


@click.command("run", cls=SectionedCommand)
@click.argument("model", required=False, shell_complete=complete_models)
@click.argument("words", nargs=-1, metavar="[PROMPT]...")
@click.option("-p", "--prompt", metavar="TEXT", help="Answer TEXT and exit; - reads it from standard input.")
@click.option("--system", metavar="TEXT", help="How the model should behave; comes before the conversation.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the model's chat template.")
@click.option("--resume", is_flag=True, help="Go on with the last conversation, and its model if none is named.")
@click.option("--session", metavar="FILE", help="Go on with the conversation in FILE, without computing it again, and "
              "keep it there.")  # fmt: skip
@click.option(
    "--no-save", is_flag=True, help="Keep nothing on the disk: no conversation, no history, no keys and values."
)
@click.option("--when-full", type=click.Choice(WHEN_FULL),
              help="What happens when the context is full: stop, drop the oldest turns (in a chat), or shift, which "
              "also lets an answer go on.  [default: drop in a chat, stop with a prompt]")  # fmt: skip
@asking_options
@sampling_options
@template_option
@runtime_options
@speculation_options
@lora_option
@click.option("--convert", is_flag=True,
              help="MODEL is a checkpoint, a folder or hf:ORG/REPO: make a GGUF file of it and keep it.")  # fmt: skip
@click.option("--estimate", "only_estimate", is_flag=True,
              help="Say how much memory MODEL will take and how fast it will be, and do no more.")  # fmt: skip
@click.option("--no-markdown", is_flag=True, help="Show answers as the model writes them, on a terminal too.")
@click.option("--stats", is_flag=True, help="Say how fast it was (on standard error).")
@click.option("-v", "--verbose", is_flag=True, help="Say which chat template is used.")
def command(
    model: str | None,
    words: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    raw: bool,
    resume: bool,
    session: str | None,
    no_save: bool,
    when_full: str | None,
    asking: Asking,
    runtime: RuntimeConfig,
    adapters: dict[Path, float],
    convert: bool,
    only_estimate: bool,
    no_markdown: bool,
    stats: bool,
    verbose: bool,
    **typed: Any,
) -> None:
    """Talk to a model, or answer one prompt.

    MODEL is a name (see `edgellm list`), hf:ORG/REPO, hf:ORG/REPO:Q4_K_M or hf:ORG/REPO/FILE.gguf of the Hugging
    Face hub, ollama:NAME, or the path of a GGUF file. A model that is not on this machine yet is fetched first.

    On a terminal this is a chat; /help tells its commands, Ctrl-C stops an answer, Ctrl-D leaves. With a PROMPT, -p,
    or text on standard input, only the answer is printed:

    \b
      edgellm run smollm2-135m "Name three rivers"
      edgellm run -p "Summarise this:" < notes.txt
      edgellm run gemma3-270m --raw -p "Once upon a time" -n 50
      edgellm run MODEL --lora ./my-adapter --lora ./style.gguf=0.5
      edgellm run MODEL --session talk.session "And the longest of them?"
    """
    from edgellm.cli import models
    from edgellm.cli.prompt import read_prompt, will_chat

    typed["when_full"] = "shift" if when_full == "shift" else None
    sampling_params(typed)  # or what cannot work is said before anything is loaded
    if words and prompt is not None:
        raise UsageError("the prompt is given twice, behind MODEL and with -p; expected one of them")
    if raw and runtime.template is not None:
        raise UsageError("--template cannot be used with --raw, which uses no chat template; leave one out")
    prompt = " ".join(words) if words else prompt
    chats = will_chat(prompt)
    _refuse_what_needs_a_chat(chats, resume, when_full)
    if typed["n_keep"] is not None and when_full != "shift":
        raise UsageError(
            "--keep is for --when-full shift, which alone leaves something out; add it, or leave --keep out"
        )
    file = _session_file(session, resume, no_save, raw, system)
    kept = _last_conversation(raw, system) if resume else None
    if no_save:
        runtime = replace(runtime, disk_bytes=0)
    named = model or (kept.model if kept else None) or _choose(chats)
    named = _one_of(named, chats)
    path = _converted(named) if convert else models.find(named)
    if only_estimate:
        _refuse_what_is_not_estimated({
            "--draft": runtime.draft, "--draft-layers": runtime.draft_layers, "--lora": adapters, "--session": session,
        })  # fmt: skip
        from edgellm.cli.expected import lines_for
        from edgellm.cli.terminal import one_line

        for line in lines_for(named, path, runtime):
            click.echo(one_line(line))
        return
    text = None if chats else read_prompt(prompt, may_be_empty=raw and prompt == "")  # a text from its beginning
    with asking.servers() as servers, models.load(path or models.pull(named), runtime, adapters) as loaded:
        if file and loaded.chat_template is None:
            raise UsageError(
                f"--session keeps a conversation, and {loaded.path.name} has no chat template; leave --session out"
            )
        asker = asking.asker(loaded, raw, servers)
        sampling = sampling_params(typed, loaded.recommended_sampling)
        if text is not None:
            _answer(loaded, asker, text, sampling, system, raw, stats, verbose, not no_markdown, file)
            return
        from edgellm.cli.chat import Chat
        from edgellm.cli.chat.settings import Behaviour

        ways = {"when_full": when_full} if when_full else {}
        behaviour = Behaviour(**ways, markdown=not no_markdown, stats=stats, think=asking.think)
        called = None if no_save else _lasting(named)
        chat = Chat(
            loaded, sampling, system=system, raw=raw, verbose=verbose, behaviour=behaviour, keep_as=called, asker=asker
        )
        if kept:
            chat.resume(kept)
        if file and (before := file.load(loaded)).turns:
            chat.begin_with(before)
        try:
            chat.loop()
        finally:
            if file:
                file.save(loaded, chat.conversation)


def _session_file(
    session: str | None, resume: bool, no_save: bool, raw: bool, system: str | None
) -> SessionFile | None:
    """Raises UsageError for options that contradict --session, and for a path that no file can have."""
    if session is None:
        return None
    from edgellm.cli.session import SessionFile

    options = {"--resume": resume, "--no-save": no_save, "--raw": raw}
    if given := [option for option, is_given in options.items() if is_given]:
        raise UsageError(f"--session cannot be used with {given[0]}; leave one of them out")
    file = SessionFile(session)
    if system is not None and file.path.exists():
        raise UsageError(
            "--session keeps the system text of the conversation; leave --system out, or name another file"
        )
    return file


def _refuse_what_needs_a_chat(chats: bool, resume: bool, when_full: str | None) -> None:
    """Raise UsageError for an option that would be ignored."""
    options = {"--resume": resume, "--when-full drop": when_full == "drop"}
    if not chats and (given := [option for option, is_given in options.items() if is_given]):
        raise UsageError(f"{given[0]} is for a chat on a terminal; it cannot be used with a prompt")


def _refuse_what_is_not_estimated(options: dict[str, Any]) -> None:
    """Raise UsageError for an option that takes memory or time beside the model."""
    if given := [option for option, value in options.items() if value]:
        raise UsageError(f"--estimate tells what the model takes by itself; leave {given[0]} out")


def _last_conversation(raw: bool, system: str | None) -> Kept:
    from edgellm.cli.chat.kept import latest

    if raw:
        raise UsageError("--resume cannot be used with --raw, which knows no conversation")
    if system is not None:
        raise UsageError("--resume keeps the system text of the conversation; change it with /system, not --system")
    return latest()


def _choose(chats: bool) -> str:
    """A model where none is named: a person at a terminal chooses, everybody else gets the default."""
    from edgellm.cli.terminal import note

    if chats and sys.stdout.isatty():
        from edgellm.cli.choose import choose_model

        return choose_model()
    note(f"no model named, using {DEFAULT_MODEL}")
    return DEFAULT_MODEL


def _one_of(named: str, chats: bool) -> str:
    """The name, or which of several models a person at a terminal says it means. Raises NameOfSeveral elsewhere."""
    if not (chats and sys.stdout.isatty()) or Path(named).exists():
        return named
    from edgellm import hub

    try:
        if not named.lower().startswith(tuple(hub.PREFIXES)):
            hub.find(named)
    except hub.NameOfSeveral as several:
        from edgellm.cli.choose import choose_of

        return choose_of(named, several.names)
    except UsageError:
        pass  # whoever looks for it says what is wrong
    return named


def _converted(named: str) -> Path:
    from edgellm.cli.converting import converted

    return converted(named)


def _lasting(named: str) -> str:
    """What a model will still be called in another folder."""
    path = Path(os.path.expanduser(named))
    return str(path.absolute()) if path.is_file() else named


def _answer(
    model: Model,
    asker: Asker,
    text: str,
    sampling: SamplingParams,
    system: str | None,
    raw: bool,
    stats: bool,
    verbose: bool,
    markdown: bool,
    file: SessionFile | None,
) -> None:
    """Print the answer to one prompt; file: the conversation that it belongs to."""
    from edgellm.cli.answer import larger_context, stream, tell_shifts, tell_stats
    from edgellm.cli.conversation import Conversation
    from edgellm.cli.screen import view_of
    from edgellm.cli.template import template_of
    from edgellm.cli.terminal import note

    template = template_of(model, raw, system, verbose)
    before = file.load(model) if file else Conversation()
    conversation = before if before.turns else Conversation(system)
    if template:
        conversation = conversation.with_user(text)
        generation = asker.chat(conversation.messages(), **vars(sampling))
    else:
        generation = model.generate(text, **vars(sampling))
    answer = stream(generation, view_of(markdown and template is not None))
    if file:
        file.save(model, conversation.with_answer(answer), generation)
    if generation.finish_reason == "cancelled":
        raise KeyboardInterrupt
    tell_shifts(generation.stats, model, note)
    if generation.finish_reason == "context":
        note(f"the context of {model.n_ctx} tokens is full, so the answer stops here; {larger_context(model)}")
    if stats:
        tell_stats(generation.stats)
