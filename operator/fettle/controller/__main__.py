"""`python -m fettle.controller`: one replica of the operator."""

from __future__ import annotations

from fettle.signals import end_at_sigterm

if __name__ == "__main__":
    end_at_sigterm()


import asyncio
import json
import logging
import sys

import click
from pydantic import ValidationError

from fettle import __version__
from fettle.api.logs import json_fields
from fettle.controller.process import main as serve
from fettle.controller.reconcilers import reconcilers
from fettle.errors import FettleError
from fettle.settings import LogFormat, Settings


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `json_fields`."""
        return json.dumps(json_fields(self, record))


def configure_logging(settings: Settings) -> None:
    """Everything to stderr. kopf speaks of each event at INFO, so it is heard from WARNING on unless DEBUG is asked for."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if settings.log_format is LogFormat.JSON else text)
    level = logging.getLevelName(settings.log_level.upper())
    if not isinstance(level, int):
        raise click.UsageError(f"FETTLE_LOG_LEVEL: expected DEBUG, INFO, WARNING or ERROR, found {settings.log_level}")
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if level > logging.DEBUG:
        logging.getLogger("kopf").setLevel(logging.WARNING)


def settings_help() -> str:
    """Every setting with its default, for --help."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = field.default.to_json() if hasattr(field.default, "to_json") else field.default
        shown = ",".join(default) if isinstance(default, tuple) else default
        lines.append(f"  FETTLE_{name.upper()}  [{'' if shown is None else shown}]\n      {field.description}")
    return "Settings, from the environment [default]:\n\n\b\n" + "\n".join(lines)


@click.command(
    help="Run one replica of the Fettle operator, as leader or standby.",
    epilog=settings_help(),
    context_settings={"max_content_width": 120},
)
@click.option(
    "--kubeconfig", type=click.Path(dir_okay=False), help="Kubeconfig file; default: the pod's own credentials."
)
@click.version_option(__version__, prog_name="fettle.controller")
def main(kubeconfig: str | None) -> None:
    """Read the settings and run until SIGTERM."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise click.UsageError(f"settings: {error}") from error
    if kubeconfig:
        settings = settings.model_copy(update={"kubeconfig": kubeconfig})
    configure_logging(settings)
    try:
        sys.exit(asyncio.run(serve(settings, reconcilers())))
    except FettleError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    main()
