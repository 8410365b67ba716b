"""edgellm completion"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what makes a shell complete the words of edgellm.

    Put it where the shell reads it at its start:

    \b
      bash   echo 'eval "$(edgellm completion bash)"' >> ~/.bashrc
      zsh    echo 'eval "$(edgellm completion zsh)"' >> ~/.zshrc
      fish   edgellm completion fish > ~/.config/fish/completions/edgellm.fish
    """
    from edgellm.cli.app import COMPLETION_VARIABLE

    kind = get_completion_class(shell)
    assert kind is not None  # click knows these three
    script = kind(command, {}, "edgellm", COMPLETION_VARIABLE)
    click.echo(script.source_template % script.source_vars())
