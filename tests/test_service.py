"""A W&B service that hangs or dies: the process that watches a run ends all the same, with its own exit status."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Stops, or kills, the real service of an offline run, and ends with a status of its own.
PROGRAM = """
import json, os, pathlib, signal, sys, threading
from plastax import tracking
from plastax.tracking import Background, WandbSink, reduce_segment, service
from tests.tracked import CONFIG, segment

directory, what, gives_up = pathlib.Path(sys.argv[1]), getattr(signal, sys.argv[2]), sys.argv[3] == "gives up"
(directory / "config.json").write_text(json.dumps(CONFIG))
service.end_in_time(1.0)
logged = threading.Event()


class Told(WandbSink):
    def log(self, metrics, step):
        super().log(metrics, step)
        logged.set()


sink = Background(Told("offline"), patience=1.0, give_up=service.give_up if gives_up else lambda hung: None)
sink.start(CONFIG, directory, "l2_er")
sink.log(reduce_segment(segment(0), CONFIG), 0)
assert logged.wait(60)
print("started", service.process().pid, flush=True)
os.kill(service.process().pid, what)
sink.log(reduce_segment(segment(1), CONFIG), 1)
sink.finish()
if gives_up:
    print("published", tracking.publish_safely(directory, "offline", 30.0))
print("end", flush=True)
sys.exit(7)
"""


@pytest.mark.slow  # It starts processes.
@pytest.mark.parametrize("gives_up", ["gives up", "leaves it"])
@pytest.mark.parametrize("what", ["SIGSTOP", "SIGKILL"])
def test_a_service_in_trouble_does_not_keep_the_process(what, gives_up, tmp_path):
    pytest.importorskip("wandb")
    started = time.monotonic()
    script = [sys.executable, "-c", PROGRAM, str(tmp_path), what, gives_up]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "WANDB_SILENT": "true"}
    done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 7, done.stderr
    assert "end" in done.stdout
    assert time.monotonic() - started < 120
    pid = int(done.stdout.split()[1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    if gives_up == "gives up":
        assert "Traceback" not in done.stderr, done.stderr
        # Another service takes what comes later.
        assert "published True" in done.stdout, done.stderr
        assert list((tmp_path / "wandb").glob("offline-run-*-r0-report"))
