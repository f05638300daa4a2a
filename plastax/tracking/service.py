"""W&B's service process: one that hangs is killed, because W&B would wait for it for ever as the process ends."""

from __future__ import annotations

import contextlib
import functools
import logging
import subprocess
import sys
import threading

logger = logging.getLogger(__name__)


def process() -> subprocess.Popen[bytes] | None:
    """The service that this process has started, None without one."""
    # W&B keeps it to itself, and its own way to end it waits without a limit.
    setup = sys.modules.get("wandb.sdk.wandb_setup")
    connection = getattr(getattr(setup, "_singleton", None), "_connection", None)
    return getattr(getattr(connection, "_proc", None), "_process", None)


def give_up(hung: bool) -> None:
    """Lets go of a service that hangs or has died, so that nothing waits for it; what it wrote can be synced.

    Args:
      hung: whether it is to be killed if it lives.
    """
    service = process()
    if service is None or not (hung or service.poll() is not None):
        return
    service.kill()
    # Its end is an error to W&B, which would print it at the end of the process; after this W&B starts another one.
    with contextlib.suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown()


@functools.cache
def end_in_time(patience: float = 30.0) -> None:
    """Kills the service ``patience`` seconds after the main thread has ended, should it still be there.

    Once in a process. The process has its own exit status all the same.
    """

    def watch() -> None:
        threading.main_thread().join()
        if (service := process()) is None:
            return
        try:
            service.wait(patience)
        except subprocess.TimeoutExpired:
            logger.warning("W&B is still busy after %g s, ending without it; `wandb sync` uploads the rest", patience)
            service.kill()

    threading.Thread(target=watch, name="plastax-wandb-end", daemon=True).start()
