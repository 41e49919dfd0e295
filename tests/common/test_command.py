"""How commands end: statuses, lines on stderr, signals, outputs that fail; in this process where that is possible."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import pytest

from fast_train.common.command import Parser, complain, run_command, steady_output


@dataclass(frozen=True)
class Flags:
    size: int
    out: str | None


@pytest.fixture
def parser():
    parser = Parser(prog="tool")
    parser.add_argument("--size", type=int, default=3)
    parser.add_argument("--out")
    return parser


@pytest.fixture
def gone():
    """Standard output and error into a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


@pytest.fixture
def hears_hang_ups():
    """The tests themselves may run where hang-ups are ignored, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def _raise(error):
    raise error


def test_flags_become_a_record(parser):
    assert parser.parse(Flags, ["--size", "5"]) == Flags(size=5, out=None)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--size", "x"], "argument --size: invalid int value: 'x'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["two\nlines"], "unrecognized arguments: two lines"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exits_with_2(parser, capsys, arguments, said):
    with pytest.raises(SystemExit) as caught:
        parser.parse(Flags, arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"tool: error: {said}; tool --help lists the flags\n"


@pytest.mark.parametrize("arguments, status", [(["--help"], 0), (["--nonsense"], 2)])
def test_the_parser_needs_no_reader(parser, gone, monkeypatch, arguments, status):
    monkeypatch.setattr(sys, "stdout", gone)
    monkeypatch.setattr(sys, "stderr", gone)
    with pytest.raises(SystemExit) as caught:
        parser.parse(Flags, arguments)
    assert caught.value.code == status


@pytest.mark.parametrize("status", [0, 1])
def test_the_status_is_that_of_the_work(status, capsys):
    assert run_command("tool", lambda: status, debug=False) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("--size 0 is too small;\n give more"), "--size 0 is too small; give more"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.pt"),
            "a.pt: No space left on device; make room, or name another place",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a\n"),
            r"a\n: Permission denied; allow it, or name another place",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "a", None, "b"),
            "b: File exists; something else is there; name another place",
        ),
        (TimeoutError("too late"), "too late"),
        (MemoryError(), "the computer is out of memory"),
        (MemoryError("Unable to allocate 3 TiB"), "Unable to allocate 3 TiB"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_is_one_line(error, line, capsys):
    assert run_command("tool", lambda: _raise(error), debug=False) == 2
    assert capsys.readouterr().err == f"tool: error: {line}\n"


def test_debug_shows_the_trace_before_the_line(capsys):
    assert run_command("tool", lambda: _raise(ValueError("bad")), debug=True) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "tool: error: bad"


def test_an_error_may_have_a_status_of_its_own(capsys):
    class NoNetwork(ValueError):
        pass

    assert run_command("tool", lambda: _raise(NoNetwork("no network")), debug=False, statuses={NoNetwork: 3}) == 3
    assert run_command("tool", lambda: _raise(ValueError("bad")), debug=False, statuses={NoNetwork: 3}) == 2


def test_a_library_s_error_may_be_explained(capsys):
    def explain(error):
        return ValueError("give a smaller --size") if isinstance(error, RuntimeError) else None

    assert run_command("tool", lambda: _raise(RuntimeError("CUDA ...")), debug=False, explain=explain) == 2
    assert capsys.readouterr().err == "tool: error: give a smaller --size\n"


def test_a_defect_keeps_its_trace():
    with pytest.raises(ZeroDivisionError):
        run_command("tool", lambda: 1 // 0, debug=False)


@pytest.mark.usefixtures("hears_hang_ups")
@pytest.mark.parametrize(
    "signum, word", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")]
)
def test_a_signal_is_one_line_and_cleans_up(signum, word, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    cleaned = []

    def work():
        try:
            signal.raise_signal(signum)
        finally:
            cleaned.append(True)

    assert run_command("tool", work, debug=False, interrupted="go on with: tool") == 128 + signum
    assert capsys.readouterr().err == f"tool: {word}; go on with: tool\n"
    assert cleaned
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.usefixtures("hears_hang_ups")
def test_a_second_hang_up_does_not_stop_the_way_out():
    cleaned = []

    def work():
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)

    assert run_command("tool", work, debug=False) == 129
    assert cleaned


@pytest.mark.usefixtures("hears_hang_ups")
def test_a_hang_up_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run_command("tool", lambda: signal.raise_signal(signal.SIGHUP) or 0, debug=False) == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("arguments", [(), ("a worker was interrupted",)])
def test_an_interrupt_without_a_number_is_ctrl_c(arguments):
    assert run_command("tool", lambda: _raise(KeyboardInterrupt(*arguments)), debug=False) == 130


def test_beside_the_main_thread_there_are_no_signals_to_hear():
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(run_command("tool", lambda: 0, debug=False)))
    thread.start()
    thread.join()
    assert statuses == [0]


@pytest.mark.parametrize(
    "error, debug, shown", [(OSError("full"), False, False), (OSError("full"), True, True), (KeyError(), False, True)]
)
def test_a_full_disk_in_a_thread_is_reported_by_who_waits_for_it(error, debug, shown, monkeypatch):
    ended = []
    monkeypatch.setattr(threading, "excepthook", ended.append)

    def work():
        thread = threading.Thread(target=_raise, args=(error,))
        thread.start()
        thread.join()
        raise error

    with suppress(KeyError):
        assert run_command("tool", work, debug=debug) == 2
    assert len(ended) == shown
    assert threading.excepthook == ended.append


_ENDING = """
import atexit, signal, sys, threading
from fast_train.common.command import run_command
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
stuck = threading.Thread(target=threading.Event().wait)
def send(name):
    signal.raise_signal(getattr(signal, name))
"""


def _ends_by(*code):
    """Exit status and stderr of a process that does this."""
    line = [sys.executable, "-c", "\n".join((_ENDING, *code))]
    result = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    "before, work, status",
    [
        pytest.param("pass", "stuck.start() or 3", 3, id="a thread that does not end"),
        pytest.param("atexit.register(send, 'SIGINT')", "3", -signal.SIGINT, id="Ctrl-C"),
        pytest.param("atexit.register(send, 'SIGHUP')", "send('SIGHUP')", 129, id="a second hang-up"),
    ],
)
def test_the_end_of_a_process_is_quick_and_silent(before, work, status):
    run = f"run_command('tool', lambda: {work}, debug=False, ends_process=True)"
    assert _ends_by(before, run) == (status, "tool: terminated\n" if status == 129 else "")


def test_a_profiler_gets_to_write_what_it_found(tmp_path):
    """It does that in Python's own end."""
    program, found = tmp_path / "program.py", tmp_path / "found"
    program.write_text(f"{_ENDING}run_command('tool', lambda: 0, debug=False, ends_process=True)")
    subprocess.run([sys.executable, "-m", "cProfile", "-o", found, program], check=True)
    assert found.exists()


def test_without_a_reader_the_work_is_done_and_has_its_status(gone, monkeypatch, capfd):
    done = []

    def work():
        for i in range(3):
            print("x" * 10_000, flush=True)
            done.append(i)
        sys.stdout.buffer.write(b"more")
        return 1

    monkeypatch.setattr(sys, "stdout", gone)
    assert run_command("tool", work, debug=False) == 1
    assert done == [0, 1, 2]
    assert sys.stdout is gone
    assert capfd.readouterr().err == ""


def test_an_error_that_nobody_reads_has_its_status(gone, monkeypatch):
    monkeypatch.setattr(sys, "stderr", gone)
    assert run_command("tool", lambda: _raise(ValueError("bad")), debug=True) == 2
    assert run_command("tool", lambda: signal.raise_signal(signal.SIGTERM), debug=False) == 143


@pytest.mark.parametrize("close", [True, False])
def test_an_output_that_is_closed_takes_everything(close, monkeypatch, tmp_path):
    stream = None
    if close:
        stream = open(tmp_path / "closed", "w")  # noqa: SIM115
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    assert run_command("tool", lambda: print("x", flush=True) or _raise(ValueError("bad")), debug=False) == 2


def test_a_letter_that_the_encoding_lacks_is_a_question_mark(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as out, open(tmp_path / "err", "w", encoding="ascii") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        run_command("tool", lambda: print("é") or _raise(ValueError("é")), debug=False)
    assert (tmp_path / "out").read_text() == "?\n"
    assert (tmp_path / "err").read_text() == "tool: error: \\xe9\n"


def test_what_was_printed_before_comes_first(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        print("before")
        with steady_output():
            print("in it")
        print("after")
    assert (tmp_path / "out").read_text() == "before\nin it\nafter\n"


@pytest.mark.parametrize("options", [{"line_buffering": True}, {"write_through": True}])
def test_lines_appear_as_soon_as_before(monkeypatch, tmp_path, options):
    with open(tmp_path / "out", "wb", buffering=0) as file, io.TextIOWrapper(file, **options) as out:
        monkeypatch.setattr(sys, "stdout", out)
        with steady_output():
            print("a line")
            assert (tmp_path / "out").read_text() == "a line\n"
        monkeypatch.undo()


def test_a_stream_that_is_no_file_is_left_as_it_is(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with steady_output():
        assert sys.stdout is stream
        print("x")
    assert stream.getvalue() == "x\n"


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_it_all(monkeypatch):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    received = []

    def read():
        while data := os.read(reading, 1 << 16):
            received.append(data)
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        reader.start()
        with steady_output():
            print("x" * 1_000_000)
        monkeypatch.undo()
    reader.join()
    os.close(reading)
    assert b"".join(received) == b"x" * 1_000_000 + b"\n"


def test_complaining_is_one_line(capsys):
    complain("tool", ValueError("a\nb"), debug=False)
    assert capsys.readouterr().err == "tool: error: a b\n"


_TOOL = """
import sys
from fast_train.common.command import run_command
def work():
    print("x" * 100_000)
    open(sys.argv[1], "w").close()
    return 0
sys.exit(run_command("tool", work, debug=False, ends_process=True))
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_standard_output_is_reported(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", _TOOL, tmp_path / "done"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == "standard output is dropped: No space left on device\n"
    assert (tmp_path / "done").exists()


def test_closed_standard_streams_are_no_files_of_the_work(tmp_path):
    command = f"{sys.executable} -c '{_TOOL}' {tmp_path}/done >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
    assert (tmp_path / "done").read_text() == ""


_AT_A_TERMINAL = """
import signal, sys, time
from fast_train.common.command import run_command
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def work():
    try:
        print("ready", flush=True)
        # Python may see a signal only after the sleep that it comes just before.
        for _ in range(600):
            time.sleep(0.1)
    finally:
        print("cleaning up", flush=True)
        open(sys.argv[1], "w").close()
sys.exit(run_command("tool", work, debug=False, ends_process=True))
"""


def test_a_terminal_that_hangs_up_takes_no_output_and_costs_no_clean_up(tmp_path):
    terminal, inside = os.openpty()
    command = [sys.executable, "-c", _AT_A_TERMINAL, tmp_path / "cleaned"]
    with subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside) as process:
        os.close(inside)
        assert b"ready" in os.read(terminal, 100)
        os.close(terminal)
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 129
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_inside_of_a_destructor_is_not_lost(signum):
    """Python drops what is raised there."""

    class Dropped:
        def __del__(self):
            signal.raise_signal(signum)

    def work():
        Dropped()
        time.sleep(10)
        return 0

    assert run_command("program", work, debug=False) == 128 + signum
