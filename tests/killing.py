"""A tiny study in processes that are made to be killed: run as ``python -m tests.killing`` by `tests.test_survival`.

It imports once, then forks a child for every line of JSON on standard input (`Order`), kills it where the order says
so, and answers with a line: how it ended. A child's study has an optimiser, an environment's state and a random stream.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import random
import resource
import runpy
import signal
import sys
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plastax import report
from plastax.keys import fold
from plastax.program import parallel, segments
from plastax.records import files
from plastax.runs import checkpoint, compilation, loop
from plastax.runs.plan import Plan, Saving
from plastax.study import settings
from plastax.types import Program
from tests import hollow

jax.config.update("jax_platforms", "cpu")
TASKS, UPDATES, LENGTH, SEEDS = 3, 4, 2, 2
OPTIMIZERS = {"adam": optax.adam(1e-2), "momentum": optax.sgd(1e-2, 0.9)}
PLAN = Plan(TASKS, UPDATES, LENGTH, SEEDS)


class State(NamedTuple):
    key: jax.Array
    params: dict[str, jax.Array]
    opt_state: Any
    environment: jax.Array
    alive: jax.Array


def network(optimizer: optax.GradientTransformation, *, width: int = 3, steps: int = 1, nan_at: int = -1) -> Program:
    """Regression on what a chaotic environment shows; seed 1's loss is not a number from update ``nan_at`` on."""

    def init(key: jax.Array, data: Any) -> State:
        params = {"kernel": jax.random.normal(fold(key, 0), (width,))}
        return State(key, params, optimizer.init(params), jax.random.uniform(fold(key, 1), (width,)), jnp.bool_(True))

    def update(state: State, data: Any, task: jax.Array, clock: jax.Array) -> Any:
        def step(_: Any, environment: jax.Array) -> jax.Array:
            return 3.9 * environment * (1 - environment)

        environment = jax.lax.fori_loop(0, steps, step, state.environment)
        noise = jax.random.normal(fold(state.key, 2, clock))
        bad = (clock == nan_at) & (jnp.sum(jax.random.key_data(state.key)) == 1)

        def loss(params: dict[str, jax.Array]) -> jax.Array:
            error = params["kernel"] @ environment - task - 0.1 * noise
            return jnp.where(bad, jnp.nan, 1.0) * error**2

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.key, params, opt_state, environment, state.alive), {"loss": value}

    def healthy(state: State, metrics: dict[str, jax.Array]) -> jax.Array:
        return jnp.isfinite(metrics["loss"])

    def begin(state: State, data: Any, task: jax.Array, clock: jax.Array) -> State:
        return state._replace(environment=jax.random.uniform(fold(state.key, 3, clock), (width,)))

    def measure(state: State, data: Any, task: jax.Array, border: jax.Array) -> dict[str, jax.Array]:
        return {"kernel/norm": jnp.linalg.norm(state.params["kernel"])}

    parts = segments.Parts(
        init,
        lambda state, data, index: jax.random.normal(fold(state.key, 4, index)),
        begin,
        update,
        healthy,
        lambda state: state._replace(opt_state=()),
        measure,
    )
    return segments.program(parts, (), updates_per_task=UPDATES)


def program(optimizer: optax.GradientTransformation, **options: Any) -> Program:
    """`network` over seeds."""
    return parallel.over_seeds(network(optimizer, **options), SEEDS)


def config(**others: Any) -> dict[str, Any]:
    chosen = {"methods": list(OPTIMIZERS), "seeds": SEEDS, "tasks": TASKS, "updates_per_task": UPDATES, **others}
    return {"experiment": "tiny", "run_id": "x", "hash": settings.identity(chosen), "settings": chosen}


def study(directory: pathlib.Path, sinks: Any = (), saving: Saving | None = None, **options: Any) -> None:
    """The study, in ``directory``; ``options`` go to `network`, those of ``width`` into the settings too."""
    chosen = config(**{name: value for name, value in options.items() if name == "width"})
    batches = [
        parallel.batch(lambda _, optimizer=optimizer: network(optimizer, **options), {name: {}}, range(SEEDS))
        for name, optimizer in OPTIMIZERS.items()
    ]
    loop.study(directory, chosen, batches, PLAN, sinks, saving=saving or Saving(1))


class Order(NamedTuple):
    """What a child is to do.

    Attributes:
      directory: of the run.
      cache: of compiled programs.
      log: its output.
      where: "" (unharmed) | time | record | renamed | checkpoint | manifest: where SIGKILL comes | term | int |
        int int: signals, after the first record | small | closed | full | moved: files may not grow any more, the
        folder is closed to writing, the disk is full, the run is moved to ``<directory>-moved``, after the second
        segment | hollow: a study of `tests.hollow` instead, see ``options`` | change: SIGKILL comes before the
        ``when``-th change below the folder ``root``; report: before the ``when``-th one that the report makes.
      when: seconds after the fork (time), the number of the write (others).
      seed: of the moment within a checkpoint.
      steps: of the environment, in an update.
      options: of `tests.hollow.main`, beside the directory; of ``module``, its command line.
      module: an experiment to run instead, with its own directories and ``cache`` as the user's cache.
      root: see ``where``.
    """

    directory: str
    cache: str
    log: str
    where: str = ""
    when: float = 0.0
    seed: int = 0
    steps: int = 1
    options: tuple[Any, ...] = ()
    module: str = ""
    root: str = ""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Hook:
    """A sink that does something to its own process after a segment."""

    def __init__(self, order: Order):
        self.order, self.calls = order, 0

    def start(self, config: Any, directory: Any, method: str) -> None: ...

    def log(self, metrics: Any, step: int) -> None:
        self.calls += 1
        directory = pathlib.Path(self.order.directory)
        match self.order.where, self.calls:
            case "term", 1:
                # As coreutils' timeout does: to the process, and to its group.
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            case "int" | "int int", 1:
                os.kill(os.getpid(), signal.SIGINT)
            # By the second time, the first checkpoint is complete.
            case "small", 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            case "closed", 2:
                for folder in (directory / "records").iterdir():
                    folder.chmod(0o555)
            case "moved", 2:
                directory.rename(f"{directory}-moved")
            case "full", 2:
                with contextlib.suppress(OSError), (directory.parent / "filling").open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
        if self.order.where == "int int" and self.calls == 1:
            # From another thread, while the main one waits for the device.
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    def finish(self) -> None: ...


def arm(order: Order) -> None:
    """Puts the kill where the order wants it: in the middle of a write, of all places."""
    count = [0]

    def now() -> bool:
        count[0] += 1
        return count[0] == int(order.when)

    if order.where in ("record", "renamed"):
        write = files.write_atomic

        def torn(path: pathlib.Path, fill: Any) -> None:
            def half(file: Any) -> None:
                fill(file)
                if path.suffix == ".npz" and order.where == "record" and now():
                    file.truncate(file.tell() // 2)
                    die()

            write(path, half)
            if path.suffix == ".npz" and order.where == "renamed" and now():
                die()

        files.write_atomic = torn
    elif order.where == "checkpoint":
        save = checkpoint.Checkpoints._write

        def racing(self: Any, *args: Any) -> None:
            if now():
                delay = random.Random(order.seed).uniform(0.0, 0.12)
                threading.Thread(target=lambda: (time.sleep(delay), die()), daemon=True).start()
            save(self, *args)

        checkpoint.Checkpoints._write = racing  # type: ignore[method-assign]
    elif order.where == "manifest":
        written = checkpoint.write_json

        def never(path: Any, value: Any) -> None:
            if now():
                die()
            written(path, value)

        checkpoint.write_json = never  # type: ignore[attr-defined]


def child(order: Order) -> None:
    with open(order.log, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if order.where == "hollow":
        hollow.main(order.directory, *order.options)
        return
    if order.where == "change":
        hollow.at_change(pathlib.Path(order.root), int(order.when), die)
    if order.where == "report":
        write = report.write

        def killed(run: report.RunLike) -> Any:
            hollow.at_change(report.load_run(run).directory, int(order.when), die)
            return write(run)

        report.write = killed
    if order.module:
        os.environ["XDG_CACHE_HOME"], sys.argv = order.cache, [order.module, *order.options]
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)
        return
    if os.getuid() == 0 and order.where == "closed":
        os.setuid(65534)  # Nothing is closed to root.
    jax.config.update("jax_compilation_cache_dir", order.cache)
    compilation.use_cache()
    arm(order)
    settings.main(lambda: study(pathlib.Path(order.directory), (Hook(order),), steps=order.steps))


def main() -> None:
    """Serves orders until standard input ends; imports what is named on the command line first."""
    for name in ("orbax.checkpoint", *sys.argv[1:]):  # A child that is no longer root may not read it.
        importlib.import_module(name)
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                child(order)
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        started, ended = time.monotonic(), False
        if order.where == "time":
            while not ended and time.monotonic() - started < order.when:
                time.sleep(0.001)
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, wait = os.waitpid(pid, 0)
        seconds = time.monotonic() - started
        print(json.dumps({"status": os.waitstatus_to_exitcode(wait), "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
