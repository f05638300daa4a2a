"""Prints what uv.lock installs here, as pip requirements with hashes: `python .ci/locked.py [extra ...]`.

The walk over the lock that `uv sync` does: the project, its development group and the named extras, every edge whose
environment marker holds. Runs in the environment to be filled; its only tool is pip's own copy of `packaging`.
"""

from __future__ import annotations

import pathlib
import sys
import tomllib
from typing import Any

from pip._vendor.packaging.markers import Marker

PROJECT = "plastax-lab"


def locked(lock: dict[str, Any], extras: list[str]) -> list[str]:
    """Sorted ``name==version --hash=...`` of the packages that the project with ``extras`` needs on this machine."""
    packages: dict[str, list[dict[str, Any]]] = {}
    for package in lock["package"]:
        packages.setdefault(package["name"], []).append(package)
    (project,) = packages[PROJECT]
    edges = list(project["dependencies"]) + list(project["dev-dependencies"]["dev"])
    for extra in extras:
        edges += project["optional-dependencies"][extra]

    seen: set[tuple[str, str]] = set()
    found: set[str] = set()
    while edges:
        edge = edges.pop()
        if "marker" in edge and not Marker(edge["marker"]).evaluate({"extra": ""}):
            continue
        (package,) = (p for p in packages[edge["name"]] if p["version"] == edge.get("version", p["version"]))
        hashes = " ".join(f"--hash={wheel['hash']}" for wheel in package["wheels"])
        found.add(f"{package['name']}=={package['version']} {hashes}")
        for part in ("", *edge.get("extra", ())):
            if (package["name"], part) not in seen:
                seen.add((package["name"], part))
                edges += package["optional-dependencies"][part] if part else package.get("dependencies", ())
    return sorted(found)


if __name__ == "__main__":
    text = pathlib.Path(__file__).parent.parent.joinpath("uv.lock").read_text(encoding="utf-8")
    print(*locked(tomllib.loads(text), sys.argv[1:]), sep="\n")
