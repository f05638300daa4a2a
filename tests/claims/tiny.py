"""Two claims about two runs of seconds; ``python -m tests.claims.tiny`` tests them."""

from __future__ import annotations

from plastax.claims import command
from plastax.claims.command import Design
from plastax.claims.judging import Claim, Contrast, Term

STUDY = {
    "stream": "random_label",
    "methods": ["backprop"],
    "probes": [],
    "seeds": 3,
    "tasks": 6,
    "training": {"epochs": 1},
    "settings": {"model_settings.hidden": (4,), "checkpoint_every": 1},
}
DESIGNS = {"one": Design(2e-3, 10, STUDY), "two": Design(2e-3, 10, STUDY | {"seeds": 4})}
FIRST_SEEDS = {"default": 0}
CLAIMS = tuple(
    Claim(
        number, "It falls", "nobody", (Contrast("falls", run, (Term("backprop", "early"),), (Term("backprop"),), 0.1),)
    )
    for number, run in enumerate(DESIGNS, 1)
)

if __name__ == "__main__":
    command.main(DESIGNS, CLAIMS, FIRST_SEEDS)
