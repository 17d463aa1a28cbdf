"""`fettle completion`, and what kubectl calls to complete `kubectl fettle`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

# kubectl's words for: nothing of the file system fits here; it may (cobra's ShellCompDirectiveNoFileComp and -Default).
NO_FILES, FILES = 4, 0


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Words, names of objects, revisions, namespaces and contexts are completed. For `kubectl fettle` nothing needs to be sourced
    beyond kubectl's own completion: it finds kubectl_complete-fettle on the PATH.

    \b
    source <(fettle completion bash)
    fettle completion zsh > "${fpath[1]}/_fettle"
    fettle completion fish > ~/.config/fish/completions/fettle.fish
    """
    root = context.find_root()
    program = root.info_name or "fettle"
    found = get_completion_class(shell)
    assert found is not None, "click.Choice admits no other shell"
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    click.echo(found(root.command, {}, program, variable).source())


def kubectl_complete() -> None:
    """Entry point of `kubectl_complete-fettle`, which kubectl asks for `kubectl fettle …`: a line each, then a directive."""
    from fettle.cli.kubectl import main

    *before, incomplete = sys.argv[1:] or [""]
    shell = get_completion_class("zsh")
    assert shell is not None
    found = shell(main, {}, "kubectl-fettle", "").get_completions(before, incomplete)
    words = [item for item in found if item.type == "plain"]  # of files kubectl's own shell knows
    for item in words:
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{NO_FILES if len(words) == len(found) else FILES}")
