"""What every test runs under: CPU, strict shapes, quick compilation, a compilation cache that outlives the session."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator

ON_ACCELERATOR = bool(os.environ.get("PLASTAX_TEST_GPU"))
if not ON_ACCELERATOR:
    os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.xla_metadata import set_xla_metadata  # noqa: E402

from plastax import data  # noqa: E402
from plastax.data import Dataset  # noqa: E402
from tests.lacking import lacking  # noqa: E402

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

_blocks = itertools.count()
_compilations: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: _compilations.append(event) if event.endswith("/backend_compile_duration") else None
)


gc.disable()  # Until all is collected: a million objects that stay.


def pytest_collection_finish() -> None:
    # A search for garbage, of which compilation makes much, would walk through them again and again.
    gc.collect()
    gc.freeze()
    gc.enable()
    # By default one starts with every 700 new objects: a thirtieth of the time of tracing and compiling.
    gc.set_threshold(100_000, 50, 100)


def pytest_configure(config: pytest.Config) -> None:
    # One cache a worker process: entries are not written atomically.
    cache = pathlib.Path(config.rootpath) / ".pytest_cache" / "xla" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # Tests compile more than they compute: a third of the time. With the slow tests (`make test-all`) everything is
    # compiled as users do, and so is, always, what says AS_USERS because its claim is about what the compiler does.
    if not ON_ACCELERATOR and config.option.markexpr == "not slow":
        # A thread for each of two workers: handing small programs to a second one takes a tenth of the time.
        os.environ.setdefault("NPROC", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        # Of processes that tests start, too.
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        if jax.__version_info__ < (0, 11):  # XLA ends a process that sets a flag which it no longer has.
            # One part a program: splitting a small one among threads takes a third of the time of compiling it.
            quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()


LONGEST = (
    "test_survival",
    "test_contract",
    "test_docstrings",
    "test_run",
    "test_names",
    "test_study",
    "test_readme",
    "test_refusals",
    "test_inspect",
    "test_train",
    "test_train_tasks",
    "test_sweep",
)
"""Files that begin first: a worker that began one of these last would run alone for its time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    skip = pytest.mark.skip(reason="needs an accelerator: set PLASTAX_TEST_GPU=1")
    for item in items:
        if item.get_closest_marker("gpu") and not ON_ACCELERATOR:
            item.add_marker(skip)


MOST_MEMORY = 1.5e9
"""Resident bytes from which what was compiled is freed after a file; without that a process grows to 4.8 GB."""


def _free_compiled() -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux with glibc alone can tell and give back.
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") > MOST_MEMORY:
            jax.clear_caches()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory() -> Iterator[None]:
    yield
    _free_compiled()


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """For files of many tests that share nothing: frees after each what others do after a file."""
    yield
    _free_compiled()


@pytest.fixture
def compilations() -> Callable[[], int]:
    """Counts the programs that XLA was asked for since the session began, those of the cache included."""
    return lambda: len(_compilations)


@pytest.fixture
def assert_no_retrace() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """``with assert_no_retrace(): ...`` fails if the block compiles anything; warm up what it calls first."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        before = len(_compilations)
        yield
        assert len(_compilations) == before, f"{len(_compilations) - before} compilation(s) where none was expected"

    return block


@pytest.fixture
def assert_nothing_compiles(assert_no_retrace) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """As `assert_no_retrace`, of a process that has compiled nothing yet: not even single operations are there."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        # A mark that no other block has is part of every cache's key. Clearing the caches would compile all again.
        with set_xla_metadata(block=next(_blocks)), assert_no_retrace():
            yield

    return block


@pytest.fixture(scope="session")
def dataset() -> Callable[[str], Dataset]:
    """Real data by name, never by download; see `tests.lacking`."""

    @functools.cache
    def get(name: str) -> Dataset:
        try:
            return data.load(name, download=False)
        except data.DataError:
            lacking(f"needs the data set {name}: make data NAME={name}")

    return get


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test with 64-bit types: references for curvature."""
    with jax.enable_x64(True):
        yield
