"""The claims of "Spectral Collapse Drives Loss of Plasticity in Deep Continual Learning", and others', tested.

    make claims
    make claims PRESET=smoke
    make claims ARGS="--claims 2 3"

Trains the runs below into <runs-dir>/claims-<name>/<run id>, where the same command continues after a kill. Judges
each claim by the rules of `plastax.claims.rules`. Leaves <runs-dir>/claims/<preset>/report.html, claims.md, claims.csv.

Settings are those of the experiments, chosen on seeds 0 to 101. The width of the network on digits, the adversarial
step and tau were chosen on seeds 100 to 107. The windows of claim 1 and the numbers of seeds were chosen on seeds 1000
to 1011, where a network that is reset seemed to fall, too: the first task of rl is easier than the others, and a few
tasks of regression differ much. Judged are seeds from 2000, except by the preset smoke.
"""

from __future__ import annotations

from plastax.claims import command
from plastax.claims.command import EPS, Design
from plastax.claims.judging import Claim, Classification, Contrast, Correlation, How, Lead, Measure, Term

FIRST_SEEDS = {"smoke": 0, "default": 2000, "accelerator": 2000}
SPECTRUM = {"hessian.order": 128, "hessian.probes": 1, "hessian.examples": 32, "hessian.every": 1}
CBP, INVERTED = (f"continual_backprop@utility={utility}" for utility in ("contribution", "uselessness"))

DESIGNS = {
    "digits": Design(
        rate=2e-3,
        steps=600,
        study={
            "stream": "random_label",
            "methods": ["backprop", "effective_rank", "l2", "l2_er", "layernorm_l2", "spectral_norm",
                        "continual_backprop", "shrink_and_perturb", "redo", "reset"],
            "sweep": {"continual_backprop.utility": ["contribution", "uselessness"]},
            "probes": ["features", "weights", "hessian", "ggn", "kronecker", "trainability", "robustness",
                       "plastax.claims.shared_spectrum:SharedSpectrum"],
            "seeds": 8,
            "tasks": 26,
            "settings": SPECTRUM | {"model_settings.hidden": (64, 64), "ggn.examples": 32, "ggn.method": "gram",
                                    "trainability.examples": 16, "trainability.tau": 0.1, "robustness.every": 2,
                                    "robustness.epsilon": 0.03, "shared_spectrum.every": 5},
        },
        presets={
            "smoke": {"seeds": 2, "tasks": 5, "steps": 10, "training": {"epochs": 1},
                      "settings": {"model_settings.hidden": (8, 8), "hessian.order": 4, "shared_spectrum.every": 1,
                                   "robustness.every": 1, "shared_spectrum.examples": 2, "ggn.examples": 4}},
            "accelerator": {"seeds": 32, "tasks": 60, "settings": {"hessian.order": 256}},
        },
        spectra=("hessian", "ggn", "kronecker"),
    ),
    "fashion": Design(
        rate=2e-3,
        steps=600,
        study={
            "stream": "random_label",
            "data": "fashion_mnist",
            "methods": ["backprop", "l2_er", "reset"],
            "probes": ["features", "weights", "hessian"],
            "seeds": 8,
            "tasks": 26,
            "settings": SPECTRUM | {"model_settings.hidden": (64, 64)},
        },
        presets={
            "smoke": {"seeds": 2, "tasks": 5, "steps": 10, "training": {"epochs": 1},
                      "settings": {"model_settings.hidden": (8, 8), "hessian.order": 4}},
            "accelerator": {"seeds": 32, "tasks": 60, "settings": {"hessian.order": 256}},
        },
        spectra=("hessian",),
    ),
    "permuted": Design(
        rate=1e-3,
        steps=625,
        study={
            "experiment": "permuted_mnist",
            "preset": "kumar",
            "methods": ["backprop", "reset"],
            "probes": ["features", "weights", "hessian"],
            "seeds": 8,
            "tasks": 60,
            "settings": SPECTRUM | {"hessian.every": 3},
        },
        presets={
            "smoke": {"data": "digits", "seeds": 2, "tasks": 13, "steps": 5, "training": {"updates": 1},
                      "settings": {"stream.examples": 80, "model_settings.hidden": (8, 8), "hessian.order": 4}},
            "accelerator": {"seeds": 32, "tasks": 300, "settings": {"hessian.order": 256}},
        },
        spectra=("hessian",),
    ),
    "regression": Design(
        rate=1e-2,
        steps=10_000,
        study={
            "stream": "slowly_changing_regression",
            "methods": ["backprop", "reset"],
            "sweep": {"training.learning_rate": [1e-2, 1e-3]},
            "probes": ["features", "weights"],
            "seeds": 24,
            "tasks": 40,
        },
        presets={
            "smoke": {"seeds": 2, "tasks": 5, "steps": 50, "settings": {"stream.period": 50}},
            "accelerator": {"seeds": 64, "tasks": 100},
        },
    ),
    "regression_fast": Design(
        rate=1e-2,
        steps=2500,
        study={
            "stream": "slowly_changing_regression",
            "methods": ["backprop"],
            "probes": ["features", "weights"],
            "seeds": 24,
            "tasks": 160,
            "settings": {"stream.period": 2500},
        },
        presets={
            "smoke": {"seeds": 2, "tasks": 10, "steps": 25, "settings": {"stream.period": 25}},
            "accelerator": {"seeds": 64, "tasks": 400},
        },
    ),
    "rl": Design(
        rate=2e-3,
        steps=2560,
        study={
            "experiment": "rl_gymnax",
            "methods": ["backprop", "reset"],
            "probes": ["features", "weights", "hessian"],
            "seeds": 8,
            "tasks": 12,
            "settings": SPECTRUM,
        },
        presets={
            "smoke": {"seeds": 2, "tasks": 5, "steps": 32,
                      "settings": {"steps_per_task": 512, "hessian.order": 4, "hessian.probes": 1}},
            "accelerator": {"seeds": 64, "tasks": 40, "steps": 10_240,
                            "settings": {"steps_per_task": 163_840, "hessian.order": 256}},
        },
        spectra=("hessian",),
    ),
}  # fmt: skip

PAPER = "Prakash et al., arXiv 2509.22335"
DOHARE = "Dohare et al., Nature 632, 2024"

EPS_RANK = Measure("Hessian eps-rank", "probe/hessian/rank")
GGN_RANK = Measure("Gauss-Newton eps-rank", "probe/ggn/rank")
HESSIAN_RANK = Measure("Hessian effective rank", "probe/hessian/effective_rank")
FEATURE_RANK = Measure("feature effective rank", "probe/features/effective_rank")
DORMANCY = Measure("dormant units", "probe/features/dormant_fraction", rises=True)
NORM = Measure("weight norm", "probe/weights/norm", rises=True)
OTHERS = (HESSIAN_RANK, FEATURE_RANK, DORMANCY, NORM)
PRODUCT_RANK = Measure("Kronecker eps-rank, sum of layers", "probe/kronecker/rank", total=True)
INPUT_RANK = Measure("effective rank of the input factor", "probe/kronecker/a_effective_rank", "end")
OUTPUT_LARGEST = Measure("largest eigenvalue of the output factor", "probe/kronecker/g_largest", "end")
SHARED = Measure("difference of spectra", "probe/shared_spectrum/difference", rises=True)
NOISE, ADVERSARY = (
    Measure(f"accuracy under {what}", f"probe/robustness/{name}_accuracy", "end")
    for what, name in (("input noise", "noise"), ("one adversarial step", "adversarial"))
)
LARGEST = Measure("largest Hessian eigenvalue", "probe/hessian/largest")


HOW: tuple[tuple[How, float], ...] = (("across", 0.5), ("within", 0.3))
"""How a spectrum is related to something, and the smallest correlation claimed."""


def thresholds(measure: Measure) -> list[Measure]:
    """An eps-rank at every threshold, absolute and relative to the largest eigenvalue."""
    relative = measure._replace(variable=f"{measure.variable[:-4]}relative_rank", label=f"relative {measure.label}")
    pairs = [*((measure, eps) for eps in EPS[1:]), *((relative, eps) for eps in EPS[:-1])]
    return [one._replace(eps=eps, label=f"{one.label} at {eps:g}") for one, eps in pairs]


def at_every_threshold(measure: Measure) -> tuple[Lead | Correlation, ...]:
    """Claims 2 and 3 on digits, at all `thresholds`."""
    every = thresholds(measure)
    found = (Correlation(f"{how}: {one.label}", "digits", one, how, size) for how, size in HOW for one in every)
    return (*(Lead(f"lead: {one.label}", "digits", one) for one in every), *found)


def falls(run: str, arm: str, size: float, first: str = "early", last: str = "late", log: bool = False) -> Contrast:
    """An arm performs worse at the end of a stream than at its beginning."""
    return Contrast(f"{run}: {arm} falls", run, (Term(arm, first),), (Term(arm, last),), size, log=log)


def keeps(run: str, arm: str, margin: float, first: str = "early", last: str = "late", log: bool = False) -> Contrast:
    """An arm does not perform worse by a margin at the end than at the beginning."""
    terms = (Term(arm, last),), (Term(arm, first),)
    return Contrast(f"{run}: {arm} falls by less than {margin:g}", run, *terms, -margin, -margin, log=log)


def beats(arm: str, other: str, size: float = 0.05) -> Contrast:
    """An arm performs better than another at the end of the stream of digits."""
    return Contrast(f"{arm} minus {other}", "digits", (Term(arm),), (Term(other),), size)


SLOW, SLOWER = (f"@learning_rate={rate}" for rate in ("0.01", "0.001"))
LOST = [Term("backprop", "early"), Term("backprop", "late")]

CLAIMS = (
    Claim(
        1,
        "Backprop loses plasticity on every stream; a network that is reset for every task does not",
        f"{DOHARE}; Kumar et al., arXiv 2308.11958",
        (
            falls("digits", "backprop", 0.1),
            keeps("digits", "reset", 0.05),
            falls("fashion", "backprop", 0.1),
            keeps("fashion", "reset", 0.05),
            falls("permuted", "backprop", 0.01),
            keeps("permuted", "reset", 0.01),
            falls("regression", f"backprop{SLOW}", 0.1, log=True),
            keeps("regression", f"reset{SLOW}", 0.1, "former", "latter", log=True),
            Contrast("rl: backprop falls by more than reset", "rl", (Term("backprop", "first"), Term("reset", "later")),
                     (Term("backprop", "later"), Term("reset", "first")), 0.1, log=True),
            keeps("rl", "reset", 0.1, "former", "latter", log=True),
        ),
    ),
    Claim(
        2,
        "The Hessian's spectrum at a task's start collapses before performance falls",
        PAPER,
        tuple(Lead(f"{run}: {EPS_RANK.label}", run, EPS_RANK) for run in ("digits", "fashion", "permuted")),
        tuple(Lead(f"digits: {one.label}", "digits", one) for one in (GGN_RANK, *OTHERS))
        + tuple(Lead(f"{run}: {one.label}", run, one) for run in ("fashion", "permuted") for one in OTHERS)
        + (Lead(f"rl: {EPS_RANK.label}", "rl", EPS_RANK),),
    ),
    Claim(
        3,
        "Methods that keep plasticity keep a dense spectrum, and those that lose it do not",
        PAPER,
        (
            Correlation("across methods", "digits", EPS_RANK, "across", 0.5),
            Correlation("within methods, over tasks", "digits", EPS_RANK, "within"),
        ),
        (
            Correlation("pooled", "digits", EPS_RANK, "pooled"),
            Correlation("Hessian effective rank, across", "digits", HESSIAN_RANK, "across", 0.5),
            Correlation("Hessian effective rank, within", "digits", HESSIAN_RANK, "within"),
            Correlation("fashion: within", "fashion", EPS_RANK, "within"),
        ),
    ),
    Claim(
        4,
        "A high effective rank alone is not enough, L2 alone is partial, and L2-ER exceeds both",
        PAPER,
        (
            beats("l2_er", "effective_rank"),
            beats("l2_er", "l2"),
            beats("l2", "backprop"),
            beats("reset", "l2"),
            beats("reset", "effective_rank", 0.1),
        ),
    ),
    Claim(
        5,
        "L2-ER exceeds LayerNorm with L2, spectral regularisation, continual backprop and a reset",
        PAPER,
        tuple(beats("l2_er", other) for other in ("layernorm_l2", "spectral_norm", CBP, "reset")),
        (beats("l2_er", INVERTED), beats("l2_er", "redo"), beats("l2_er", "shrink_and_perturb")),
    ),
    Claim(
        6,
        "Feature rank and dormancy can look healthy while plasticity is lost and the Hessian shows it",
        f"{PAPER}, figure of dead units and ranks",
        (
            falls("digits", "effective_rank", 0.1),
            Contrast("feature rank, log10 of late over early: above -0.1", "digits", (Term("effective_rank"),),
                     (Term("effective_rank", "early"),), -0.1, -0.1, FEATURE_RANK, log=True),
            Contrast("dormant units, early minus late: above -0.1", "digits", (Term("effective_rank"),),
                     (Term("effective_rank", "early"),), -0.1, -0.1, DORMANCY),
            Contrast("Hessian eps-rank, log10 of early over late", "digits", (Term("effective_rank", "early"),),
                     (Term("effective_rank"),), 0.3, measure=EPS_RANK, log=True),
        ),
    ),
    Claim(
        7,
        "The Gram and Gauss-Newton matrices share their spectrum, and trainability tells success on a new task",
        f"{PAPER}, v1 (tau-trainability) and v3 (Gram matrix)",
        (
            Contrast("decimal digits in which the spectra agree", "digits", (Term("backprop", "later"),), (), 3.0, 3.0,
                     SHARED, log=True),
            Classification("area under the ROC curve of reachable directions", "digits",
                           Measure("reachable directions", "probe/trainability/reachable"), "area", 0.7),
            Classification("Brier skill of the tau-trainability indicator", "digits",
                           Measure("tau-trainability", "probe/trainability/trainable"), "skill", 0.1),
        ),
        (
            Classification("area under the ROC curve of the Hessian eps-rank", "digits", EPS_RANK, "area", 0.7),
            Classification("area under the ROC curve of the feature rank", "digits", FEATURE_RANK, "area", 0.7),
        ),
    ),
    Claim(
        8,
        "ER raises the input factor's effective rank, L2 bounds the output factor; their product has the GGN's rank",
        f"{PAPER}, Kronecker-factored Hessian",
        (
            Contrast("input factor, log10 of ER over backprop", "digits", (Term("effective_rank"),),
                     (Term("backprop"),), 0.1, measure=INPUT_RANK, log=True),
            Contrast("output factor, log10 of backprop over L2", "digits", (Term("backprop"),), (Term("l2"),), 0.3,
                     measure=OUTPUT_LARGEST, log=True),
            *(
                Contrast(f"log10 of {one.label} over the {two.label}: above -0.3", "digits", (Term("l2_er", "later"),),
                         (), -0.3, -0.3, one, two, log=True)
                for one, two in ((PRODUCT_RANK, GGN_RANK), (GGN_RANK, PRODUCT_RANK))
            ),
        ),
    ),
    Claim(
        9,
        "Claims 2 and 3 hold on digits at every threshold over four decades, absolute and relative",
        f"{PAPER}, eps chosen to maximise R^2 there",
        # Of the exact spectrum: Lanczos does not resolve the Hessian's small eigenvalues.
        at_every_threshold(GGN_RANK),
        at_every_threshold(EPS_RANK),
    ),
    Claim(
        10,
        "Larger steps and faster changes lose more, and continual backprop exceeds its inverted form",
        f"{DOHARE}; the released code of arXiv 2509.22335 has the inverted form",
        (
            Contrast("loss of plasticity, step size 0.01 minus 0.001", "regression",
                     (Term(f"backprop{SLOW}", "early"), Term(f"backprop{SLOWER}", "late")),
                     (Term(f"backprop{SLOW}", "late"), Term(f"backprop{SLOWER}", "early")), 0.05, log=True),
            Contrast("loss of plasticity, changes every 2,500 minus every 10,000 examples", "regression",
                     (Term("backprop", "early", "regression_fast"), Term(f"backprop{SLOW}", "late")),
                     (Term("backprop", "late", "regression_fast"), Term(f"backprop{SLOW}", "early")), 0.05, log=True),
            beats(CBP, INVERTED),
        ),
    ),
    Claim(
        11,
        "A dense spectrum goes with robustness to input noise and to one adversarial step",
        f"{PAPER}, named there as future work",
        tuple(
            Correlation(f"{other.label}, {how}", "digits", EPS_RANK, how, size, other)
            for other in (NOISE, ADVERSARY)
            for how, size in HOW
        ),
        tuple(
            Correlation(f"largest eigenvalue, {other.label}, {how}", "digits", LARGEST, how, size, other)
            for other in (NOISE, ADVERSARY)
            for how, size in HOW
        ),
    ),
)  # fmt: skip

if __name__ == "__main__":
    command.main(DESIGNS, CLAIMS, FIRST_SEEDS)
