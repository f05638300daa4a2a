"""Arms that train side by side: in slots, within the memory, with the numbers that each has alone."""

from __future__ import annotations

import io
import shutil
import threading

import numpy as np
import optax
import pytest
import rich.console

from experiments import random_label
from plastax.errors import RunError
from plastax.program import parallel
from plastax.records import layout, lifecycle
from plastax.runs import beside, loop, networks
from plastax.runs.memory import Need
from plastax.runs.plan import Saving
from plastax.tracking import ConsoleSink, Lines
from tests import killing
from tests.test_ahead import PLAN, batch


def test_slots_work_at_the_same_time_and_results_are_in_order():
    meeting = threading.Barrier(2, timeout=30)

    def meet(slot, item):
        meeting.wait()  # Passes only where two are here at once.
        return slot, item

    found = beside.in_slots(meet, range(4), ("a", "b"))
    assert [item for _, item in found] == [0, 1, 2, 3]
    assert {slot for slot, _ in found} == {"a", "b"}


def test_after_an_error_nothing_begins_and_what_has_begun_ends():
    began, failed, ended = [], threading.Event(), []

    def work(slot, item):
        began.append(item)
        if item == 1:
            failed.set()
            raise RunError("the second")
        assert failed.wait(30)
        ended.append(item)

    with pytest.raises(RunError, match="the second"):
        beside.in_slots(work, range(9), ("a", "b"))
    assert sorted(began) == [0, 1]
    assert ended == [0]


def test_what_does_not_fit_beside_another_waits_until_it_ends():
    room, order = beside.Room(), []
    huge = Need(1 << 60, 0)

    def second():
        with room.taken(huge, batch("huge", lambda s: s)):
            order.append("second")

    with room.taken(huge, batch("huge", lambda s: s)):  # Alone, it begins; whether it fits is asked elsewhere.
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        order.append("first")
    other.join(30)
    assert order == ["first", "second"]


def test_arms_side_by_side_have_the_records_that_they_have_in_turn(tmp_path):
    def study(name, **options):
        batches = [batch("first", lambda s: s * 2), batch("second", lambda s: s + 1), batch("third", lambda s: s - 3)]
        names = [one.name for one in batches]
        settings = {"methods": names, "seeds": 2, "first_seed": 0, "tasks": 2, "updates_per_task": 1}
        config = {"experiment": "x", "run_id": "x", "hash": "x", "settings": settings}
        assert list(loop.study(tmp_path / name, config, batches, PLAN, saving=Saving(1), **options)) == names
        assert lifecycle.status(tmp_path / name).state == "finished"
        return names

    for arm in study("in_turn") and study("beside", beside=[()]):
        for index in range(PLAN.segments):
            one, other = (
                layout.read_segment(tmp_path / name / "records" / arm / f"{index:06}.npz")
                for name in ("in_turn", "beside")
            )
            assert np.array_equal(one.train["loss"], other.train["loss"])


def test_calls_that_share_cores_have_the_records_that_they_have_in_turn(tmp_path):
    """Five seeds, two a call: on three cores, on one, and on one after three, with the last checkpoint lost."""
    many = parallel.batch(lambda _: killing.network(optax.adam(0.1)), {"adam": {}}, range(5), chunk=2)
    assert many.calls == 3
    config = killing.config(methods=["adam"], seeds=5)

    def train(name, cores):
        options = {"saving": Saving(1), "room": beside.Room(cores)}
        return loop.train(tmp_path / name, config, many, killing.PLAN, **options)

    train("one", 1)
    for name in ("three", "both"):
        train(name, 3)
    newest, _ = sorted((tmp_path / "both/checkpoints/adam").glob("[0-9]*"), key=lambda path: -int(path.name))
    shutil.rmtree(newest)
    assert train("both", 1) is not None
    at_the_end = (networks.read(tmp_path / name, config, "adam") for name in ("one", "three", "both"))
    kernel, *others = (found["params"]["kernel"] for found in at_the_end)
    assert kernel.shape[0] == len(np.unique(kernel, axis=0)) == 5
    for other in others:
        assert np.array_equal(kernel, other)
    for index in range(killing.PLAN.segments):
        parts = (tmp_path / name / f"records/adam/{index:06}.npz" for name in ("one", "three", "both"))
        one, *rest = map(layout.read_segment, parts)
        assert one.train["loss"].shape[0] == 5
        for other in rest:
            assert np.array_equal(one.train["loss"], other.train["loss"])
            np.testing.assert_array_equal(one.probe["kernel/norm"], other.probe["kernel/norm"])


def test_as_many_calls_run_at_the_same_time_as_there_are_cores_and_memory_for():
    many = parallel.batch(lambda _: killing.network(optax.adam(0.1)), {"adam": {}}, range(5), chunk=1)
    meeting = threading.Barrier(2, timeout=30)

    def at_once(needed, cores):
        here, most, lock = 0, 0, threading.Lock()

        def call(part):
            nonlocal here, most
            with lock:
                here += 1
                most = max(most, here)
            if cores > 1 and not needed.working and part < 2:
                meeting.wait()  # Passes only where two are here at once.
            with lock:
                here -= 1
            return part

        with beside.Room(cores).taken(needed, many) as each:
            assert [*each(call, range(5))] == [0, 1, 2, 3, 4]
        return most

    assert at_once(Need(1, 0), 2) == 2
    assert at_once(Need(1, 0), 1) == 1
    assert at_once(Need(1, 1 << 60), 2) == 1  # No two fit into memory.


def test_a_call_trains_two_networks_on_a_cpu_unless_told_otherwise():
    def built(*args):
        common = ("--preset", "smoke", "--methods", "backprop", "--probes", "none", "--seeds", "5", "--devices", "1")
        (batch,) = random_label.EXPERIMENT.build(random_label.EXPERIMENT.parse([*common, *args])).batches
        return batch.width, batch.calls

    assert built() == (2, 3)
    assert built("--seed-chunk", "4") == (4, 2)
    assert built("--seed-chunk", "0") == (5, 1)


def test_each_arm_has_a_line_of_the_terminal(tmp_path):
    console = rich.console.Console(file=io.StringIO(), width=100, force_terminal=True)
    lines = Lines(console)
    first, second = ConsoleSink(lines), ConsoleSink(lines)
    config = {"settings": {"tasks": 2, "updates_per_task": 1, "seeds": 2}}
    first.start(config, tmp_path, "backprop")
    second.start(config, tmp_path, "reset")
    for sink, task in ((first, 0), (second, 0), (first, 1)):
        sink.log({"host/clock": float(task), "host/length": 1.0, "task/loss": np.ones(2)}, task)
    first.finish()
    begun = len(console.file.getvalue())
    second.log({"host/clock": 1.0, "host/length": 1.0, "task/loss": np.ones(2)}, 1)
    second.finish()
    text = console.file.getvalue()
    assert "backprop" in text[:begun]
    assert "reset" in text[begun:]
    assert "task 2/2" in text[begun:]


def test_a_callback_is_called_in_one_thread_unless_several_arms_are_asked_for():
    assert beside.count(0, called=True) == 1
    assert beside.count(3, called=True) == beside.count(3, called=False) == 3
