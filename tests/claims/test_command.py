"""The command: its page, its refusals, and runs that are trained once and continued after a kill."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from experiments import claims
from plastax.claims import command, judging, page
from plastax.claims.judging import Claim, Contrast, Correlation, Lead, Term
from plastax.errors import ConfigError
from plastax.records.files import write_json
from tests.claims import tiny
from tests.claims.test_judging import RANK, evidence, make_run

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_has_every_claim_with_its_numbers(tmp_path):
    write_json(make_run(tmp_path / "run") / "environment.json", {})
    runs = {"digits": evidence(tmp_path / "run")}
    falls = Contrast("backprop <falls>", "digits", (Term("backprop", "early"),), (Term("backprop"),), 0.1)
    made = (
        Claim(1, "It falls", "A & B", (falls, Lead("lead", "digits", RANK))),
        Claim(2, "It rises", "C", (Contrast("rises", "digits", falls.minus, falls.plus, 0.1),)),
        Claim(3, "It is seen", "D", (Correlation("across", "digits", RANK, "across"),), (falls,)),
    )
    judged = [judging.judge(claim, runs) for claim in made]
    refused = {"Claim 4": ConfigError("digits: no spectrum")}
    path = page.write(judged, refused, runs, {"digits": tmp_path / "run"}, tmp_path / "out", "make claims")
    text = path.read_text()
    for part in ("1. It falls", "backprop &lt;falls&gt;", "A &amp; B", "Claim 4: digits: no spectrum", "--claims 3"):
        assert part in text
    table = (tmp_path / "out" / "claims.md").read_text()
    assert "| 1. It falls | A & B | **supported** | backprop <falls>: +0.8" in table
    assert "| 2. It rises | C | **not supported** | rises: -0.8" in table
    numbers = pd.read_csv(tmp_path / "out" / "claims.csv")
    assert numbers["claim"].tolist() == [1, 1, 2, 3, 3]
    assert numbers["judged"].tolist() == [True, True, True, True, False]
    assert (numbers["low"] <= numbers["effect"]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "smok"}, "preset: 'smok' is unknown (did you mean 'smoke'?)"),
        ({"claims": (12,)}, "claims: '12' is unknown"),
        ({"claims": (4,), "given": ("digits",)}, "given: 'digits' is not allowed; give a name and a run directory"),
        ({"claims": (4,), "given": ("digit=x",)}, "given: 'digit' is unknown (did you mean 'digits'?)"),
        (
            {"claims": (4,), "given": ("digits=x",)},
            "digits: x is not a run directory; record one with: make claims PRESET=smoke",
        ),
    ],
)
def test_an_option_is_refused_in_one_line_before_anything_is_trained(options, said, tmp_path):
    chosen = command.Options(**{"preset": "smoke", "runs_dir": tmp_path} | options)
    with pytest.raises(ConfigError) as refused:
        command.test(claims.DESIGNS, claims.CLAIMS, claims.FIRST_SEEDS, chosen)
    assert str(refused.value).startswith(said)
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_stream_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    chosen = command.Options("smoke", (4,), (f"digits={run}",), tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"digits: .* has another stream or training .*; record it with: make claims"):
        command.test(claims.DESIGNS, claims.CLAIMS, claims.FIRST_SEEDS, chosen)


@pytest.mark.slow
def test_a_killed_command_continues_trains_nothing_twice_and_gives_the_same_verdicts(tmp_path):
    def start(place: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "tests.claims.tiny", "--runs-dir", str(tmp_path / place)]
        return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def records(place: str) -> list[pathlib.Path]:
        return sorted((tmp_path / place).glob("claims-*/*/records/*/*.npz"))

    killed = start("killed")
    while not records("killed") and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "claims").exists()
    for place in ("killed", "whole"):
        again = start(place)
        said, _ = again.communicate()
        assert again.returncode == 0, said
    assert len(list((tmp_path / "killed").glob("claims-*/*"))) == len(tiny.DESIGNS)
    tables = [tmp_path / place / "claims" / "default" / "claims.csv" for place in ("killed", "whole")]
    assert tables[0].read_text() == tables[1].read_text()
    before = [path.stat().st_mtime_ns for path in records("whole")]
    command.test(tiny.DESIGNS, tiny.CLAIMS, tiny.FIRST_SEEDS, command.Options(runs_dir=tmp_path / "whole"))
    assert [path.stat().st_mtime_ns for path in records("whole")] == before
