"""edgellm serve"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.options import Size, runtime_options, template_option
from edgellm.errors import FileProblem, UsageError
from edgellm.params import RuntimeConfig
from edgellm.server.settings import ServerConfig

NEEDED = ("starlette", "uvicorn", "pydantic")
LOGS = ("json", "text", "off")


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_models)
@click.option("--host", default=ServerConfig.host, show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=int, default=ServerConfig.port, show_default=True, metavar="N", help="0 takes a free one.")
@click.option("--api-key", "api_key", multiple=True, envvar="EDGELLM_API_KEY", metavar="KEY",
              help="A key that clients must send. May stand again.")  # fmt: skip
@click.option("--api-keys", "key_file", type=click.Path(path_type=Path), metavar="FILE",
              help="A file of hashed keys, which --new-key writes.")  # fmt: skip
@click.option("--new-key", metavar="NAME", help="Make a key for NAME, put its hash into the file of --api-keys, print "
              "it, and exit.")  # fmt: skip
@click.option("--parallel", type=int, default=ServerConfig.parallel, show_default=True, metavar="N",
              help="Answers that are written at the same time.")  # fmt: skip
@click.option("--queue", type=int, default=ServerConfig.queue, show_default=True, metavar="N",
              help="Requests that may wait for their turn.")  # fmt: skip
@click.option("--timeout", type=float, default=ServerConfig.timeout, show_default=True, metavar="SECONDS",
              help="For a request in all; 0 is no limit.")  # fmt: skip
@click.option("--idle", type=float, default=ServerConfig.idle, show_default=True, metavar="SECONDS",
              help="After which an unused model is unloaded; 0 keeps it.")  # fmt: skip
@click.option("--memory", "memory_bytes", type=Size(), metavar="SIZE", help="That loaded models may take together.  "
              "[default: most of what the machine has]")  # fmt: skip
@click.option("--allow-host", "allowed_hosts", multiple=True, metavar="NAME",
              help="Another name by which clients may call this server.")  # fmt: skip
@click.option("--allow-origin", "allowed_origins", multiple=True, metavar="URL",
              help="A web site whose pages may use this server.")  # fmt: skip
@click.option("--log", "log_as", type=click.Choice(LOGS), default=None,
              help="A line for each request, on standard error.  [default: text on a terminal, else json]")  # fmt: skip
@click.option("--log-contents", is_flag=True, help="Put what was asked and answered into the log.")
@click.option("--status", "asks_status", is_flag=True, help="Say how the server that runs at --host and --port is.")
@template_option
@runtime_options
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key: tuple[str, ...],
    key_file: Path | None,
    new_key: str | None,
    log_as: str | None,
    asks_status: bool,
    runtime: RuntimeConfig,
    **settings: Any,
) -> None:
    """Answer HTTP requests with this machine's models.

    Each MODEL is a name, a path, or NAME=PATH; without one, all that are installed can be asked for. They are loaded
    when somebody asks. The interfaces are those of OpenAI (/v1), Anthropic (/v1/messages) and Ollama (/api).

    \b
      edgellm serve smollm2-135m
      edgellm serve coder=./qwen.gguf smollm2-135m --port 11434
      edgellm serve --status
    """
    if asks_status:
        from edgellm.cli.server_status import tell_status

        tell_status(host, port, api_key[0] if api_key else None)
        return
    if new_key is not None:
        _make_key(new_key, key_file)
        return
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f'edgellm serve needs {", ".join(missing)}; install it with: pip install "edgellm[server]"')
    _serve(models, runtime, host, port, api_key, key_file, log_as, settings)


def _serve(
    models: tuple[str, ...],
    runtime: RuntimeConfig,
    host: str,
    port: int,
    api_key: tuple[str, ...],
    key_file: Path | None,
    log_as: str | None,
    settings: dict[str, Any],
) -> None:
    from edgellm.cli.terminal import note
    from edgellm.server.app import create_app
    from edgellm.server.keys import Keys
    from edgellm.server.protocol import run
    from edgellm.server.running import heard, listen, serve, uvicorn_for

    given = {name: value for name, value in settings.items() if value is not None}
    config = ServerConfig(host=host, port=port, runtime=runtime, **given)
    keys = Keys.of(api_key, key_file)
    named = _named(models)
    log = _logger(log_as)
    listening = listen(config)
    try:
        application = create_app(config, named, keys, log)
        address = listening.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        if not keys and address[0] not in ("127.0.0.1", "::1"):
            note("everybody who reaches this address may use the models; --api-key asks for a key")
        first = next(iter(named)) if named else None
        if first:
            note(f"loading {first}")

        def ready() -> None:
            note(f"listening on http://{shown}:{address[1]}")

        with heard(log):
            run(serve(uvicorn_for(application, config), application, listening, first, ready))
    finally:
        listening.close()


def _named(models: tuple[str, ...]) -> dict[str, Path] | None:
    """Paths by the names under which they are asked for; None for all that are installed."""
    from edgellm.cli import models as found

    named: dict[str, Path] = {}
    for word in models:
        name, equals, rest = word.partition("=")
        is_path = not equals or Path(os.path.expanduser(word)).is_file()
        typed = word if is_path else rest
        path = found.path_of(typed)
        called = name if not is_path else path.stem if Path(os.path.expanduser(typed)).is_file() else typed
        if not called or not called.isprintable():
            raise UsageError(f"{word}: the name of a model is missing; expected NAME=PATH")
        if called in named:
            raise UsageError(f"two models are called {called}; give one of them another name: NAME={typed}")
        named[called] = path
    return named or None


def _make_key(name: str, file: Path | None) -> None:
    from edgellm.files import atomic_write
    from edgellm.server.keys import new_line, read

    if file is None:
        raise UsageError("--new-key needs the file that it is put into; add --api-keys FILE")
    known = read(file) if file.exists() else {}
    key, line = new_line(name)
    if name in known:
        raise UsageError(f"{file} has a key of {name} already; choose another name, or take that line out")
    try:
        before = file.read_bytes() if file.exists() else b"# Keys of edgellm serve, hashed.\n"
        with atomic_write(file) as out:
            out.write(before + (b"" if before.endswith(b"\n") else b"\n") + line.encode() + b"\n")
    except OSError as error:
        raise FileProblem(f"{file}: {error.strerror}") from None
    click.echo(key)


def _logger(log_as: str | None) -> Any:
    """Writes each record as a line to standard error; one thread at a time."""
    how = log_as or ("text" if sys.stderr.isatty() else "json")
    lock = threading.Lock()

    def log(record: dict[str, Any]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        if how == "json":
            text = json.dumps({"time": f"{stamp}Z", **record}, ensure_ascii=False, default=str)
        else:
            text = _in_words(stamp, record)
        with lock:
            print(text, file=sys.stderr, flush=True)

    return (lambda record: None) if how == "off" else log


def _in_words(stamp: str, record: dict[str, Any]) -> str:
    from edgellm.cli.terminal import one_line

    if "path" not in record:
        return one_line(f"{stamp[11:]} {record.get('level', '')} {record.get('message', '')}")
    words = [stamp[11:], record["method"], record["path"], "gone" if record.get("gone") else str(record["status"])]
    words.append(f"{record['seconds']:.3f} s")
    if "model" in record:
        words.append(record["model"])
    if "generated_tokens" in record:
        words.append(f"{record['prompt_tokens']}+{record['generated_tokens']} tokens")
    words += [f"{name}={record[name]}" for name in ("error", "exception", "asked", "answered") if name in record]
    return one_line(" ".join(words))
