"""What is printed: no control character from data, no failure where nobody reads, streams that are closed at the start."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tokcli import terminal
from tokcli.training.signals import StopSignal

RED, TURNED, C1 = "\x1b[31m", "\u202egnp.exe", "\x9b2J"  # a colour, a name that reads backwards, a sequence of one byte
PROGRESS = """
import logging, sys
from tqdm import tqdm
from tokcli.cli.flags import quiet_stdout
from tokcli import terminal
terminal.guard()
with quiet_stdout():
    for _ in tqdm(range(3), mininterval=0, file=sys.stderr):
        logging.getLogger("tok").info("a notice")
with open(sys.argv[1], "w") as file:  # whichever number it gets
    print("noise", file=sys.stderr, flush=True)
    file.write("kept")
print("path")
"""


@pytest.mark.parametrize("text", [RED, TURNED, C1, "a\u2066b", "\u061c", "\x07", "\r", "\u2028", "\udcff"])
def test_what_could_move_the_cursor_or_turn_the_line_is_escaped(text: str) -> None:
    line = terminal.printable(f"x{text}")
    assert line.isprintable() and "\\" in line and line.startswith("x")


def test_letters_of_all_languages_stay() -> None:
    text = "naïve Straße 猫 кошка قطة חתול 🐈"
    assert terminal.printable(text) == terminal.shown(text) == text


def test_a_stream_escapes_all_but_new_lines_and_what_moves_a_progress_bar() -> None:
    raw = io.BytesIO()
    stream = terminal.Terminal(raw, encoding="utf-8")
    stream.write(f"\r 3% {RED}\n\n\x1b[A{TURNED}")
    stream.flush()
    assert raw.getvalue().decode() == "\r 3% \\x1b[31m\n\n\x1b[A\\u202egnp.exe"


def test_no_progress_bar_moves_where_results_are_printed() -> None:
    raw = io.BytesIO()
    stream = terminal.Result(raw, encoding="utf-8")
    stream.write("a\r\n\x1b[Ab")
    stream.flush()
    assert raw.getvalue() == b"a\\r\n\\x1b[Ab"


def test_a_notice_is_one_line_whatever_it_names() -> None:
    record = logging.LogRecord("tok", logging.INFO, "", 0, "%s: left out", (f"a\n{RED}.png",), None)
    assert terminal.Line().format(record) == "a\\n\\x1b[31m.png: left out"


def test_json_is_printable_and_means_the_same() -> None:
    value = {"naïve 🐈": [RED, TURNED, C1, "\u2028", "\ue000", "\U000e0001", "\udcff"]}
    text = terminal.as_json(value)
    assert json.loads(text) == value
    assert "naïve 🐈" in text and text.replace("\n", "").isprintable()


@pytest.mark.parametrize("how", ["closed", "full", "broken", "all closed"])
def test_progress_and_notices_end_nothing_where_stderr_takes_nothing(tmp_path: Path, how: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", PROGRESS, str(tmp_path / "file")]
    prepare = {
        "closed": lambda: os.close(2),
        "full": lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 2),
        "broken": lambda: os.dup2(write, 2),
        "all closed": lambda: os.closerange(0, 3),
    }[how]
    done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=prepare, check=False)
    os.close(write)
    assert (done.returncode, done.stdout) == (0, b"" if how == "all closed" else b"path\n")
    assert (tmp_path / "file").read_text() == "kept"


def run(code: str, **streams: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import os, sys, tokcli.cli as c, tokcli.cli.recipes as s\n{code}\nc.main()"]
    return subprocess.run(command, text=True, check=False, **streams)  # type: ignore[call-overload, no-any-return]


def test_a_result_that_nobody_takes_is_one_line_and_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = run("sys.argv = ['tok', 'recipes']", stdout=full, stderr=subprocess.PIPE)
    said = "stdout: No space left on device. Check the path, its permissions and the space on the disk.\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_help_that_nobody_takes_is_one_line_too() -> None:
    with open("/dev/full", "w") as full:
        done = run("sys.argv = ['tok', '--help']", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "stdout: No space left" in done.stderr


def test_a_closed_standard_input_is_known_as_closed(tmp_path: Path) -> None:
    code = "s.listing = lambda: f'{sys.stdin} {open(sys.argv[0]).fileno() > 2}'; sys.argv = [c.__file__, 'recipes']"
    done = run(code, capture_output=True, preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stdout) == (0, "None True\n")


def test_words_of_the_command_line_are_printed_escaped() -> None:
    for words in (["verify", "a", f"{TURNED}\r\n\x1b[A"], [f"--{TURNED}\r\n\x1b[A"]):
        done = run(f"sys.argv = ['tok', *{words!r}]", capture_output=True)
        assert done.returncode == 2 and "\\u202egnp.exe\\r\\n\\x1b[A" in done.stderr and "\u202e" not in done.stderr


def test_a_closed_session_stops_a_command_as_sigterm_does() -> None:
    done = run("s.listing = lambda: os.kill(os.getpid(), 1); sys.argv = ['tok', 'recipes']", capture_output=True)
    assert (done.returncode, done.stderr) == (75, "tok: interrupted. Repeat the command to go on.\n")


def test_a_signal_in_a_callback_that_drops_exceptions_stops_a_command_too() -> None:
    dying = "type('Dying', (), {'__del__': lambda self: (os.kill(os.getpid(), 15), [None for _ in range(1000)])})"
    code = f"s.listing = lambda: ({dying}(), 'went on')[1]; sys.argv = ['tok', 'recipes']"
    done = run(code, capture_output=True)
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "tok: interrupted. Repeat the command to go on.\n"


def test_nohup_keeps_a_command_alive() -> None:
    code = "s.listing = lambda: os.kill(os.getpid(), 1) or 'went on'; sys.argv = ['tok', 'recipes']"
    done = run(code, capture_output=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_nohup_keeps_a_loop_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
