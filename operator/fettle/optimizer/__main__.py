"""`python -m fettle.optimizer`: run the task in FETTLE_TASK and answer on stdout's last line and in the termination log."""

from __future__ import annotations

from fettle.signals import end_at_sigterm

if __name__ == "__main__":
    end_at_sigterm()
    from fettle.optimizer.supervise import supervise

    supervise()


import logging
import os
import sys

import click

from fettle.errors import UsageError
from fettle.optimizer import stage
from fettle.store.credentials import CleanFormatter
from fettle.store.uris import Mounts


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run one optimization task: prepare, build, measure or publish.

    Started by the operator as a Job, or by `fettle optimize` as a process. It reads

    \b
    FETTLE_TASK             the task as JSON, or zlib: + base64 of the compressed JSON
    FETTLE_MOUNTS           JSON {claim: folder}: where each pvc://CLAIM/ lies here
    FETTLE_SECRETS          JSON {address: folder}: where the Secret of each address outside lies here
    FETTLE_ALLOW_FILES      1 lets file:// addresses be opened
    FETTLE_TERMINATION_LOG  file for the outcome (default /dev/termination-log where it exists)
    FETTLE_ENDS             Unix time at which the run's deadline is; an exhaustive search ends before
    FETTLE_LEADER           host:port of the first of several pods that train together; JOB_COMPLETION_INDEX is this one's number

    and answers with exit status 0 or 1, the outcome in the termination log, and the result as the last line of stdout.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(CleanFormatter("%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    out = _own_stdout()
    try:
        answer = stage.answer(stage.read_task(os.environ), Mounts.from_environment())
    except UsageError as error:
        answer = stage.failed(error.reason, error.message)
    stage.write_termination(answer, os.environ)
    if answer.line is None:
        logging.getLogger(__name__).error("%s: %s", answer.termination.reason, answer.termination.message)
        sys.exit(1)
    with os.fdopen(out, "w", encoding="utf-8") as stream:
        stream.write(answer.line + "\n")


def _own_stdout() -> int:
    """Keep stdout for the result alone: what libraries print, C++ ones included, goes to stderr. The kept descriptor."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept


if __name__ == "__main__":
    main()
