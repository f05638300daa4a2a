"""Runs that sinks are told about, and what an offline W&B file holds of them."""

from __future__ import annotations

import json
import pathlib
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from plastax.records.layout import Segment

SEEDS, TASKS = 4, 3
CONFIG = {
    "experiment": "demo",
    "run_id": "r0",
    "hash": "abc",
    "settings": {"methods": ["l2_er"], "seeds": SEEDS, "first_seed": 2, "tasks": TASKS, "updates_per_task": 5},
    "dims": {"hessian/rank": ["eps"], "hessian/nodes": ["probe", "node"], "hessian/weights": ["probe", "node"]},
    "coords": {"eps": [0.01, 0.1]},
}


def segment(task: int) -> Segment:
    rng = np.random.default_rng(task)
    episode = rng.normal(100.0 * task, 1.0, (SEEDS, 5))
    episode[:, 0] = np.nan
    nodes = np.stack([rng.normal(0.0, 3.0, (SEEDS, 2, 6)), np.full((SEEDS, 2, 6), np.nan)], axis=1)
    probe = {
        "hessian/nodes": nodes,
        "hessian/weights": np.full((SEEDS, 2, 2, 6), 1 / 6),
        "hessian/rank": np.stack([np.ones((SEEDS, 2)) * [5.0, 2.0], np.full((SEEDS, 2), np.nan)], axis=1),
        "gradient/norm": np.ones((SEEDS, 2)) * [1.0, 2.0],
    }
    host = {"segment": task, "clock": 5 * task, "length": 5, "task": task, "train_seconds": 2.0, "env_steps": 1e4}
    return Segment({"episode_return": episode}, probe, host | {"compile_seconds": 7.5 if task == 0 else 0.0})


def chunks(content: bytes) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format, seven bytes of header before blocks of 32 KiB.

    W&B 0.31 has no reader in Python any more. See the "log format" page in LevelDB's documentation.
    """
    if len(content) < 7:
        return
    magic, _, version = struct.unpack("<4sHB", content[:7])
    assert (magic, version) == (b":W&B", 0)
    at, parts = 7, []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        checksum, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part = content[at + 7 : at + 7 + length]
        if len(part) < length:
            return
        assert checksum == zlib.crc32(bytes([kind]) + part)
        parts.append(part)
        at += 7 + length
        # 1 is a whole record, 4 the last part of one.
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def read_records(directory: pathlib.Path, name: str = "") -> list[Any]:
    """All records of the only offline run in a run directory, or of the one whose id ends so."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (directory / "wandb").glob(f"offline-run-*/*{name}.wandb")
    # W&B's service goes on writing for a moment after `finish`; the exit record is the last one.
    for _ in range(200):
        records = []
        for chunk in chunks(path.read_bytes()):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(chunk)
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return records


def defined_summaries(directory: pathlib.Path) -> dict[str, tuple[bool, ...]]:
    """Metric -> whether its last, mean, highest and lowest value are kept in the summary, of those that say so."""
    metrics = [record.metric for record in read_records(directory) if record.WhichOneof("record_type") == "metric"]
    return {
        metric.name: (metric.summary.last, metric.summary.mean, metric.summary.max, metric.summary.min)
        for metric in metrics
        if metric.HasField("summary")
    }


def defined_axes(directory: pathlib.Path) -> list[tuple[Any, str]]:
    """The metrics that a run defines, each with the metric that it is drawn over."""
    metrics = [record.metric for record in read_records(directory) if record.WhichOneof("record_type") == "metric"]
    return [(metric, metric.step_metric or metrics[metric.step_metric_index - 1].name) for metric in metrics]


def read_offline_run(directory: pathlib.Path, name: str = "") -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
    """Configuration, logged rows and the run itself of the only offline run in a run directory, or of the named one."""
    records = read_records(directory, name)
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            rows.append({})
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inner = rows[-1]
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[last] = json.loads(item.value_json)
    return config, rows, run


def run_files(directory: pathlib.Path, name: str = "") -> pathlib.Path:
    (path,) = (directory / "wandb").glob(f"offline-run-*/*{name}.wandb")
    return path.parent / "files"


SUPERVISED = {**CONFIG, "settings": {**CONFIG["settings"], "data_card": {"synthetic": True}}}


def supervised_segment(part: int, regression: bool = False) -> Segment:
    """The first or second half of a task: only the second one has values at the end of the task."""
    accuracy = np.full((SEEDS, 5), np.nan if regression else 0.5 + 0.1 * part)
    final = np.stack([np.full(SEEDS, 0.125), np.full(SEEDS, 0.75 if part % 2 else np.nan)], axis=1)
    probe = {"evaluation/train_accuracy": 0.0 * accuracy[:, :2] + final, "evaluation/train_loss": 1.0 - final}
    host = {"segment": part, "clock": 5 * part, "length": 5, "task": part // 2, "train_seconds": 2.0, "env_steps": 1e4}
    return Segment({"accuracy": accuracy, "loss": np.full((SEEDS, 5), 0.25)}, probe, host)
