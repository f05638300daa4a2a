"""A campaign of kills over whole studies, from the first instant of a run to the last file of its report.

``PLASTAX_KILLS`` says how many; by default a few. A tenth of them each comes in the first 100 ms, while compiled
programs are written, and while the report is; the others at any moment. It prints what became of the runs: a line for
each study when it ends, and one of them all.
"""

from __future__ import annotations

import os
import pathlib
import random
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from plastax.records import files, lifecycle
from tests.test_survival import Server

KILLS = int(os.environ.get("PLASTAX_KILLS", "8"))
WARM = (
    "plastax.study.supervised", "plastax.rl", "plastax.report.figures", "plastax.report.html", "plotly.graph_objects",
    "matplotlib.pyplot", "scipy.stats", "sklearn.datasets",
)  # fmt: skip
COMMON = "--wandb disabled --checkpoint-every 1 --seeds 1"
SWEEP = f"--methods l2 --sweep method.l2=0,0.1 --sweep training.learning-rate=1e-2,1e-3 {COMMON}"
STUDIES: dict[str, tuple[str, list[str]]] = {
    "supervised": (
        "experiments.random_label",
        [f"--preset smoke --methods l2_er --tasks 3 --segments-per-task 5 --probes features {COMMON}"],
    ),
    "rl": ("experiments.rl_gymnax", [f"--preset smoke --methods backprop --tasks 2 --probes features {COMMON}"]),
    "sweep": ("tests.tiny_experiment", [SWEEP]),
    "shards": ("tests.tiny_experiment", [f"{SWEEP} --shard {i}/2" for i in range(2)]),
}
KINDS = ("early", "cache", "report", *("any",) * 7)


class Study:
    """One of `STUDIES`, as nobody kills it, and as often as one likes killed."""

    def __init__(self, name: str, folder: pathlib.Path):
        self.module, self.lines = STUDIES[name]
        self.folder = folder / name
        (self.folder / "cache").mkdir(parents=True)
        self.serve = Server(self.folder, *WARM)
        self.number, self.counts = 0, Counter[str]()
        self.whole, self.seconds = self.folder / "whole", 0.0
        for line in self.lines:
            assert self.run(line, self.folder / "cold")["status"] == 0
        for line in self.lines:
            done = self.run(line, self.whole)
            assert done["status"] == 0, done["log"]
            self.seconds = max(self.seconds, done["seconds"])
        self.expected = contents(self.whole)

    def run(self, line: str, place: pathlib.Path, **more: Any) -> dict[str, Any]:
        """One process of it; ``more`` says where it is killed."""
        return self.serve(place, module=self.module, options=(*line.split(), "--runs-dir", str(place)), **more)

    def killed(self, kinds: list[str], draw: random.Random) -> list[str]:
        """A run that is killed in each of these ways, and then finished; the ways that came too late for it."""
        self.number += 1
        root, cache, missed = self.folder / f"run-{self.number}", self.folder / "cache", []
        for kind in kinds:
            line = draw.choice(self.lines)
            more: dict[str, Any] = {"where": "time", "cache": str(cache)}
            if kind == "early":
                more["when"] = draw.uniform(0.0, 0.1)
            elif kind == "any":
                more["when"] = draw.uniform(0.1, 1.0) * self.seconds
            elif kind == "cache":
                cache = self.folder / f"cache-{self.number}"
                cache.mkdir(exist_ok=True)
                more = {"where": "change", "when": draw.randint(1, 30), "root": str(cache), "cache": str(cache)}
            else:
                for other in self.lines[:-1]:
                    self.end(self.run(other, root, cache=str(cache)))
                line, more = self.lines[-1], {"where": "report", "when": draw.randint(1, 12), "cache": str(cache)}
            # The same command would begin another run.
            if self.finished(root) or self.run(line, root, **more)["status"] != -9:
                missed.append(kind)
                continue
            self.counts["kills"] += 1
            if kind == "report":
                before = times(root)
                self.end(self.run(line, root, cache=str(cache)))
                self.counts["trained again"] += times(root) != before
        for line in self.lines:
            if not self.finished(root):
                self.end(self.run(line, root, cache=str(cache)))
        found = contents(root)
        self.counts["runs"] += 1
        self.counts["trained again"] += len([*root.glob("*/*/config.json")]) != 1
        self.counts["stuck"] += not self.finished(root)
        self.counts["bytes lost"] += sum(self.expected[name].nbytes for name in self.expected.keys() - found.keys())
        same = {name for name in self.expected.keys() & found.keys() if equal(self.expected[name], found[name])}
        self.counts["mismatches"] += len(self.expected.keys() & found.keys()) - len(same)
        self.counts["bytes the same"] += sum(self.expected[name].nbytes for name in same)
        shutil.rmtree(root)
        return missed

    def end(self, done: dict[str, Any]) -> None:
        """Counts a process that was not killed and did not end well."""
        if done["status"]:
            self.counts["stuck"] += 1
            print(done["log"][-2000:])

    def finished(self, root: pathlib.Path) -> bool:
        return {lifecycle.status(path.parent).state for path in root.glob("*/*/config.json")} == {"finished"}


def times(root: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.glob("*/*/records/*/*.npz")}


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def contents(root: pathlib.Path) -> dict[str, np.ndarray]:
    """Everything that a study has recorded but seconds and compilations, and the shapes of its last checkpoints."""
    found = {}
    for path in root.glob("*/*/records/*/*.npz"):
        with np.load(path) as arrays:
            for name in arrays:
                if not re.search("seconds|compilations", name):
                    found[f"{path.parent.name}/{path.stem}/{name}"] = arrays[name]
    for folder in root.glob("*/*/checkpoints/*"):
        manifest = max(folder.glob("[0-9]*/manifest.json"), key=lambda path: int(path.parent.name))
        leaves = files.read_json(manifest)["leaves"]
        found[f"{folder.name}/{manifest.parent.name}"] = np.frombuffer(repr(leaves).encode(), np.uint8)
    return found


@pytest.mark.slow  # It runs whole studies.
@pytest.mark.timeout(7200)
def test_nothing_is_lost_in_a_campaign_of_kills(tmp_path):
    draw = random.Random(KILLS)
    each = -(-KILLS // len(STUDIES))

    def campaign(name: str) -> Counter[str]:
        own, study = random.Random(f"{KILLS} {name}"), Study(name, tmp_path)
        kinds = [KINDS[i % len(KINDS)] for i in range(each)]
        own.shuffle(kinds)
        while kinds and study.counts["runs"] < 4 * each:
            wanted, kinds = kinds[:8], kinds[8:]
            kinds += study.killed(sorted(wanted, key=lambda kind: kind == "report"), own)
        study.serve.process.communicate()
        print(f"{name}: {dict(study.counts)}", flush=True)
        return study.counts

    with ThreadPoolExecutor(2) as pool:
        total = sum(pool.map(campaign, draw.sample(list(STUDIES), len(STUDIES))), Counter[str]())
    for name in ("stuck", "trained again", "bytes lost", "mismatches"):
        total[name] += 0
    print(", ".join(f"{count} {name}" for name, count in total.items()))
    assert total["kills"] >= KILLS
    assert {name: total[name] for name in ("stuck", "trained again", "bytes lost", "mismatches")} == dict.fromkeys(
        ("stuck", "trained again", "bytes lost", "mismatches"), 0
    )
