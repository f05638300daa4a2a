"""Kills a W&B service that hangs: W&B would wait for it for ever when the process ends."""

from __future__ import annotations

import contextlib
import functools
import logging
import subprocess
import sys
import threading

logger = logging.getLogger(__name__)


def process() -> subprocess.Popen[bytes] | None:
    """The service that this process has started, or None."""
    # W&B has no public way to it, and its own way to end the service waits without a limit.
    setup = sys.modules.get("wandb.sdk.wandb_setup")
    connection = getattr(getattr(setup, "_singleton", None), "_connection", None)
    return getattr(getattr(connection, "_proc", None), "_process", None)


def give_up(hung: bool) -> None:
    """Abandons a service that hangs or has died, so that nothing waits for it; what it wrote can be synced.

    Args:
      hung: whether to kill a living one.
    """
    service = process()
    if service is None or not (hung or service.poll() is not None):
        return
    service.kill()
    # Otherwise W&B would print an error at the end of the process. After this, W&B can start another service.
    with contextlib.suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown()


@functools.cache
def end_in_time(patience: float = 30.0) -> None:
    """Kills a service that still runs ``patience`` seconds after the main thread has ended.

    Acts once in a process, and does not change its exit status.
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
