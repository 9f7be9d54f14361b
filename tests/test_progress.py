"""Progress: bars on a pseudo-terminal, lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import time
from threading import Thread

import pytest
from tqdm import tqdm

from saefeat import progress
from saefeat.progress import Console, quiet, track

PROGRAM = """
import sys, time
from saefeat.progress import Console, track
say = Console()
with track(say, "train", 40, brief="brief" in sys.argv) as bar:
    for step in range(4):
        time.sleep(0.15)
        bar.update(10)
        bar.set_postfix_str(f"loss {step}")
        if step == 1:
            say("half done")
say("done")
"""


def on_a_terminal(*arguments: str, columns: int = 80) -> str:
    """What the program writes to standard error where that is a terminal of so many columns."""
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, columns))
    command = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(command, stderr=writing, stdout=subprocess.PIPE) as run:
        os.close(writing)
        written = b""
        while True:
            try:
                part = os.read(reading, 4096)
            except OSError:  # the program has closed its end
                break
            if not part:
                break
            written += part
        assert run.stdout is not None and run.stdout.read() == b""
    os.close(reading)
    assert run.returncode == 0
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that stay on a terminal: a carriage return goes back to the line's beginning."""
    lines = []
    for line in written.replace("\x1b[A", "").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        if shown.strip():
            lines.append(shown.strip())
    return lines


def test_a_terminal_shows_a_bar_with_the_time_left_and_lines_above_it():
    written = on_a_terminal()
    states = re.findall(r"train:\s+(\d+)%\|.*?\| [\d.]+/40.0 \[\d\d:\d\d<(\d\d:\d\d|\?)", written)
    assert [share for share, _ in states][-1] == "100"
    assert ("50", "00:00") in states
    assert "loss 2" in written
    assert screen(written) == ["half done", "done"]  # the bar itself is gone at the end


def test_a_bar_is_no_wider_than_the_terminal():
    for columns in (50, 80):
        parts = re.split(r"[\r\n]", on_a_terminal(columns=columns))
        assert max(map(len, parts)) <= columns


def test_brief_work_has_a_bar_only_after_half_a_second():
    shares = re.findall(r"train:\s+(\d+)%", on_a_terminal("brief"))
    assert "25" not in shares and "100" in shares


def test_a_pipe_gets_plain_lines():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")
    first, last, done = run.stderr.splitlines()
    assert (first, done) == ("half done", "done")
    assert re.fullmatch(r"train: 40 of 40 tokens, .* tokens/s, 00:00 left, loss 3", last)
    assert "\r" not in run.stderr


def test_a_line_is_said_at_most_every_so_many_seconds_and_at_the_end(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.2)
    lines: list[str] = []
    start = time.monotonic()
    with track(lines.append, "collect", 5_000, "examples") as bar:
        for _ in range(50):
            bar.update(100)
            time.sleep(0.01)
    assert 2 <= len(lines) <= (time.monotonic() - start) / 0.2 + 1
    assert lines[-1].startswith("collect: 5,000 of 5,000 examples, ")
    counts = [int(re.findall(r"[\d,]+", line)[0].replace(",", "")) for line in lines]
    assert counts == sorted(counts) and counts[0] > 0


def test_every_update_is_a_line_where_the_interval_is_zero(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines: list[str] = []
    with track(lines.append, "collect", 3) as bar:
        for _ in range(3):
            bar.update(1)
    counts = [line.partition(" tokens")[0] for line in lines]
    assert counts == [f"collect: {n} of 3" for n in (1, 2, 3)]


def test_a_rate_below_one_per_second_is_given_per_minute(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines: list[str] = []
    with track(lines.append, "steering", 3, "labels") as bar:
        bar.start_t -= 20  # as if the work had begun 20 seconds ago
        bar.last_print_t -= 20
        bar.update(1)
    (line,) = lines
    assert re.fullmatch(r"steering: 1 of 3 labels, 3\.00 labels/min, 00:\d\d left", line)


def test_work_of_unknown_size_is_counted_without_a_time_left(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines: list[str] = []
    with track(lines.append, "corpus", None, "rows") as bar:
        bar.update(1_234)
    assert lines[-1].startswith("corpus: 1,234 rows, ")
    assert not any("left" in line or "None" in line for line in lines)


@pytest.mark.parametrize(("brief", "said"), [(True, 0), (False, 1)])
def test_brief_work_that_is_done_before_a_line_is_due_says_nothing(brief, said):
    lines: list[str] = []
    with track(lines.append, "corpus", 3, brief=brief) as bar:
        bar.update(3)
    assert len(lines) == said


def test_figures_are_said_with_the_next_line_and_make_none_of_their_own():
    lines: list[str] = []
    with track(lines.append, "train", 9) as bar:
        for step in range(9):
            bar.set_postfix_str(f"loss {step}")
            bar.update(1)
    (line,) = lines
    assert line.endswith(", loss 8")


def test_a_failure_inside_ends_the_bar_and_is_raised():
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt), track(lines.append, "train", 3) as bar:
        bar.update(1)
        raise KeyboardInterrupt
    assert lines[-1].startswith("train: 1 of 3 tokens")


def test_a_console_whose_standard_error_is_no_terminal_has_none(capsys):
    console = Console()
    assert console.terminal is None
    console("a line")
    assert capsys.readouterr() == ("", "a line\n")
    assert quiet("a line") is None and capsys.readouterr() == ("", "")


def test_the_lock_of_the_bars_is_free_after_a_line_that_raises(monkeypatch):
    monkeypatch.setattr("saefeat.progress.LINE_SECONDS", 0)

    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), track(interrupt, "train", 3) as bar:
        bar.update(1)
    taken = []
    lock = tqdm.get_lock().th_lock

    def take():
        taken.append(lock.acquire(timeout=5))
        if taken[0]:
            lock.release()

    thread = Thread(target=take)  # the lock is reentrant: its own thread always has it
    thread.start()
    thread.join()
    assert taken == [True]
