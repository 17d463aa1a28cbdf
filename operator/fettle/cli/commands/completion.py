"""`fettle completion`, and what kubectl calls to complete `kubectl fettle`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    The script completes commands, object names, revisions, namespaces and contexts. `kubectl fettle` only needs kubectl's own
    completion, which finds kubectl_complete-fettle on the PATH.

    \b
    source <(fettle completion bash)
    fettle completion zsh > "${fpath[1]}/_fettle"
    fettle completion fish > ~/.config/fish/completions/fettle.fish
    """
    root = context.find_root()
    program = root.info_name or "fettle"
    completion_class = get_completion_class(shell)
    assert completion_class is not None, "click.Choice admits no other shell"
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    click.echo(completion_class(root.command, {}, program, variable).source())
