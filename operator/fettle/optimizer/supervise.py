"""A task runs in a child process: whoever a native library takes down with it, somebody is left to say so.

Called before anything large is imported: the parent stays small, and forks while there is one thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def supervise() -> None:
    """Go on in a child. The parent never returns: it passes SIGTERM on, ends as the child does, and answers for one that was killed otherwise."""
    parent = os.getpid()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before that held
            os._exit(1)
        return

    asked: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status >= 0:
        os._exit(status)
    if -status in asked:  # a pod that is evicted or stopped with others has crashed in no library
        os._exit(128 - status)
    from fettle.optimizer import stage

    stage.write_termination(stage.crashed(os.environ, signal.Signals(-status)), os.environ)
    os._exit(128 - status)
