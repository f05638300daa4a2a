"""Imports point one way, and LAPACK, flax, wandb and orbax each have one door. Read from the source, nothing is run."""

from __future__ import annotations

import ast
import graphlib
import pathlib
import re
from collections.abc import Collection, Iterable

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BASE = {
    "discovery",
    "drawing",
    "errors",
    "flow",
    "keys",
    "layers",
    "linalg",
    "locks",
    "machine",
    "moving",
    "output",
    "parameters",
    "platforms",
    "ranges",
    "roles",
    "sharding",
    "structure",
    "tree",
    "types",
    "version",
}
MIDDLE = BASE | {"data", "models", "curvature"}
ENGINE = MIDDLE | {"streams", "methods", "probes", "program", "rl"}
KEPT = BASE | {"records"}
ALLOWED = {  # module or package of plastax -> the others that it may import
    **dict.fromkeys(MIDDLE, BASE),
    **dict.fromkeys(("streams", "probes"), MIDDLE),
    "methods": MIDDLE - {"models"},
    "program": MIDDLE | {"probes"},
    "rl": MIDDLE | {"program"},
    "records": BASE,
    "report": KEPT,
    "tracking": KEPT | {"report"},  # the report's statistics, for live intervals
    "runs": KEPT | {"program", "tracking"},
    "testing": ENGINE,
    "inspecting": ENGINE | KEPT | {"report", "tracking", "runs", "study"},
    "study": ENGINE | KEPT | {"report", "tracking", "runs"},
    "claims": ENGINE | KEPT | {"report", "tracking", "runs", "study"},
    "__main__": ENGINE | KEPT | {"report", "tracking", "runs", "study", "inspecting"},
    "__init__": ENGINE | KEPT | {"report", "study", "inspecting", "testing"},
}
DOORS = {
    "flax": {"models"},
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking"},
    "tensorboard": {"tracking"},
    "orbax": {"runs", "inspecting"},
    "submitit": {"study"},
}
LAPACK = re.compile(
    r"jax\.numpy\.linalg\.(?!(norm|vector_norm|matrix_norm|trace|outer|diagonal|matmul|vecdot|cross|multi_dot)$)\w+"
    r"|jax\.(scipy|lax)\.linalg(\..*)?|(.*\.)?(delta_)?orthogonal"
)


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """``jnp.linalg.eigh`` of an attribute chain, its first name replaced by what the file imported under it."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    value = dotted(node.value, names) if isinstance(node, ast.Attribute) else None
    return value and f"{value}.{node.attr}"


def violations(module: str, source: str) -> list[str]:
    """What ``plastax/<module>`` (or ``experiments``) may not contain."""
    tree, imported, found = ast.parse(source), set(), []
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            found += ["relative import"] if node.level else []
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for name in sorted(imported):
        top, inner, *_ = f"{name}..".split(".")
        wrong_door = top in DOORS and module not in DOORS[top]
        upwards = module != "experiments" and (
            top == "experiments" or (top == "plastax" and inner not in ALLOWED[module] | {module, "__version__"})
        )
        found += [f"imports {name}"] * (wrong_door or upwards)
    if module != "linalg":
        used = {dotted(node, names) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used = {name for name in used | imported if name and not name.startswith("plastax.")}
        found += [f"decomposes: {name}" for name in sorted(used) if LAPACK.fullmatch(name)]
    return found


# What this times beside plastax's own differentiates singular values, of one matrix at a time.
DECOMPOSES = {"experiments/bench/effective_rank.py"}
FILES = sorted(path.relative_to(ROOT) for top in ("plastax", "experiments") for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_keeps_to_its_layer(path: pathlib.Path):
    module = "experiments" if path.parts[0] == "experiments" else path.with_suffix("").parts[1]
    assert module == "experiments" or module in ALLOWED, f"{path}: give this new module a layer in ALLOWED"
    found = violations(module, (ROOT / path).read_text(encoding="utf-8"))
    if path.as_posix() in DECOMPOSES:
        found = [violation for violation in found if not violation.startswith("decomposes")]
    assert not found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("types", "from plastax.models import MODELS"),
        ("tree", "import plastax.runs.loop"),
        ("curvature", "from plastax import models"),
        ("curvature", "from plastax.records.loading import load"),
        ("methods", "from plastax.models import MODELS"),
        ("methods", "from plastax import streams"),
        ("methods", "def f():\n    from plastax.streams.toy import Toy"),
        ("probes", "from plastax.program.supervised import program"),
        ("rl", "import plastax.records.layout"),
        ("program", "from plastax.rl import ppo"),
        ("records", "from plastax.runs.loop import train"),
        ("report", "from plastax.models import MODELS"),
        ("runs", "import experiments.rl_gymnax"),
        ("rl", "from ..models import MODELS"),
        ("rl", "import flax.linen as nn"),
        ("runs", "import wandb"),
        ("experiments", "import wandb"),
        ("records", "import orbax.checkpoint as ocp"),
        ("curvature", "import jax.numpy as jnp\njnp.linalg.eigh(a)"),
        ("rl", "import jax\njax.numpy.linalg.svd(a)"),
        ("rl", "from jax.numpy.linalg import qr"),
        ("rl", "from jax.numpy import linalg as la\nla.cholesky(a)"),
        ("rl", "import jax.scipy.linalg"),
        ("rl", "import jax\njax.scipy.linalg.eigh(a)"),
        ("rl", "from jax import lax\nlax.linalg.qr(a)"),
        ("models", "import flax.linen as nn\nnn.initializers.orthogonal(1.0)"),
        ("models", "from jax.nn.initializers import orthogonal"),
        ("experiments", "import jax.numpy as jnp\njnp.linalg.eigvalsh(a)"),
    ],
)
def test_rule_can_fail(module: str, source: str):
    assert violations(module, source)


def test_what_is_allowed_passes():
    assert not violations("linalg", "import jax.numpy as jnp\njnp.linalg.eigh(a)")
    assert not violations("models", "import flax.linen as nn\nfrom plastax import linalg\nlinalg.orthogonal(1.0)")
    assert not violations("report", "import numpy as np\nfrom plastax.records.loading import load\nnp.linalg.eigh(a)")
    assert not violations("curvature", "import jax.numpy as jnp\njnp.linalg.norm(a)")


def imported(nodes: Iterable[ast.AST], known: Collection[str]) -> set[str]:
    """The modules, of those that are known, that some nodes of a source import, and the top level of all others."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else f"{node.module}" for name in whole}
    return {name if name in known else name.partition(".")[0] for name in found}


def circle(sources: dict[str, ast.Module]) -> list[str]:
    """Modules that import each other, within functions and for type checkers too; none: there are none."""
    graph = {name: imported(ast.walk(tree), sources) for name, tree in sources.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


SOURCES = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for path in FILES
}


def test_modules_import_in_no_circle():
    assert not circle(SOURCES), "move what both need into a module of its own"


def test_a_circle_is_found():
    lazy = "def f():\n    from plastax import a"
    assert circle({"plastax.a": ast.parse("import plastax.b"), "plastax.b": ast.parse(lazy)})
    assert not circle({"plastax.a": ast.parse("import plastax.b"), "plastax.b": ast.parse("from plastax import c")})


@pytest.mark.parametrize("folder", ["records", "report"])
def test_runs_are_read_without_jax(folder):
    """Neither imports it, nor does what they import; within a function they may ask for its version."""
    found, rest = set(), {name for name in SOURCES if name.startswith(f"plastax.{folder}")}
    while rest:
        found |= rest
        rest = {n for name in rest & SOURCES.keys() for n in imported(SOURCES[name].body, SOURCES)} - found
    assert len(found) > 5
    assert not found & {"jax", "flax", "optax", "orbax"}
