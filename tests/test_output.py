"""What is printed can be lost, and hurts nobody: not the process that prints it, not the terminal that shows it."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import rich.console
import rich.table
from hypothesis import given
from hypothesis import strategies as st

from plastax import output
from plastax.records.files import write_json
from plastax.study import listing
from plastax.tracking import ConsoleSink, Guarded
from tests.tracked import CONFIG, segment

ROOT = pathlib.Path(__file__).parent.parent
# It prints in every way, more than a pipe holds, and ends with a status of its own.
PROGRAM = """
import logging, sys
from plastax import output
output.make_lossy()
print("first", flush=True)
for stream in (sys.stdout, sys.stderr):
    console = output.Console(file=stream)
    for _ in range(100):
        print("x" * 4096, file=stream)
        console.print("y" * 4096)
    output.say(console, "\\udcff\\u2713")
logging.warning("z")
sys.exit(3)
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("redirected", ["| head -c 1", "2>&1 | head -c 1", ">/dev/full 2>/dev/full", ">&- 2>/dev/null"])
def test_a_program_whose_output_nobody_takes_ends_as_ever(redirected, tmp_path):
    if "full" in redirected and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    line = f'{{ "$0" -c "$1"; echo $? > "$2"; }} {redirected}'
    script = ["bash", "-c", line, sys.executable, PROGRAM, str(tmp_path / "status")]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    assert (tmp_path / "status").read_text().strip() == "3"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("flags", [["-u"], []])
def test_output_is_buffered_as_python_was_asked_to(flags):
    program = (
        "import os; from plastax import output; output.make_lossy()\n"
        "print('a' * 10**6, end='', flush=True); print('b', end=''); os._exit(0)"
    )
    script, env = [sys.executable, *flags, "-c", program], os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    # A pipe takes less at a time; and what is not flushed is lost when a process ends so.
    assert done.stdout == "a" * 10**6 + ("b" if flags else "")


@given(st.text())
def test_what_is_shown_has_no_control_character(text):
    shown = output.plain(text)
    assert not any(c < " " or "\x7f" <= c < "\xa0" for c in shown if c not in "\t\n")
    assert shown == text or len(shown) > len(text)


@pytest.mark.parametrize(
    "text", ["/a/[/bold]b", "[red]x[/red]", ":smile: 1e-3", "\x1b[2J\x1b]0;title\x07", "\u202egnp"]
)
def test_text_is_shown_as_it_is(text):
    file = io.StringIO()
    console = output.Console(file=file, width=40)
    output.say(console, f"{text} {'long ' * 50}end")
    table = rich.table.Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    line, *rest = file.getvalue().splitlines()
    assert line == f"{output.plain(text)} {'long ' * 50}end"
    assert "".join(rest).count(output.plain(text)) == 3
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("console", [output.Console, rich.console.Console])
def test_a_sink_stays_silent_when_its_pipe_is_closed(console, tmp_path, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    # rich's own console puts another file in the place of standard output and ends the process.
    monkeypatch.setattr("os.dup2", lambda *_: None)
    sink = Guarded(ConsoleSink(console(file=Closed())))
    sink.start(CONFIG, tmp_path, "[/x]")
    for task in range(2):
        sink.log({**{f"host/{name}": value for name, value in segment(task).host.items()}}, task)
    sink.finish()


def test_a_list_of_runs_shows_what_their_files_say_as_it_is(tmp_path):
    run = tmp_path / "demo" / "\x1b[2J[red]"
    write_json(run / "config.json", CONFIG)
    write_json(run / "status.json", {"state": "failed", "detail": "\x1b]0;title\x07", "updated": 0.0})
    file = io.StringIO()
    output.Console(file=file, width=200).print(listing.table(tmp_path))
    assert "demo/\\x1b[2J[red]" in file.getvalue()
    assert not {"\x1b", "\x07"} & {*file.getvalue()}


def test_a_message_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        output.fail("error: a\nb \x1b[31m", 1)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: a b \\x1b[31m\n"
