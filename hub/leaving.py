"""The end of a process whose work is done and written down.

Invariant: threads that still wait for an answer get `JOIN_S` to have it, and everything said is flushed, before the
process ends. Python itself would then take its modules apart object by object: a second and a half of one core where
FastAPI and SQLAlchemy are loaded, and on a busy machine more than the supervisor waits before it kills.
"""

import logging
import os
import sys
import threading
import time
from typing import Final, NoReturn

JOIN_S: Final = 1.0


def leave() -> NoReturn:
    """End the process with exit code 0. Everything that must be closed has been."""
    deadline = time.monotonic() + JOIN_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
