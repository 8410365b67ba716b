"""edgellm cache"""

from __future__ import annotations

import click

from edgellm.cli.terminal import counted, size_text
from edgellm.errors import FileProblem


@click.command("cache")
@click.argument("what", required=False, type=click.Choice(["show", "clear"]), default="show")
def command(what: str) -> None:
    """Show what is kept on the disk of long prompts, or clear it.

    \b
      edgellm cache
      edgellm cache clear

    Keys and values of prompts above 512 tokens are kept in EDGELLM_HOME, where only you can read them, so that a
    prompt that begins like an earlier one is not computed again after a restart. `edgellm run --disk-bytes N` limits
    what they take, 0 keeps nothing.
    """
    from edgellm.engine import disk_cache
    from edgellm.params import RuntimeConfig

    if what == "clear":
        before = len(disk_cache.files())
        freed = disk_cache.make_room(0)
        left = disk_cache.files()
        click.echo(f"removed {counted(before - len(left), 'file')}, {size_text(freed)}")
        if left:
            raise FileProblem(f"{left[0][0]} cannot be removed, and is one of {counted(len(left), 'file')} that stay")
        return
    found = disk_cache.files()
    total = sum(status.st_size for _, status in found)
    n_models = len({path.parent for path, _ in found})
    click.echo(f"{disk_cache.prefixes_folder()}")
    held = f"{counted(len(found), 'file')} of {counted(n_models, 'model')}"
    click.echo(f"{held}, {size_text(total)} of {size_text(RuntimeConfig.disk_bytes)}")
