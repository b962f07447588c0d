import os
import pty
import re
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from twinstep.errors import UserError
from twinstep.presets import DEFAULTS
from twinstep.run_dir import read_metrics
from twinstep.run_log import RunLog, check_trackers, open_trackers

ROOT = Path(__file__).parents[2]
CONFIG = DEFAULTS["linear"]


def open_log(run: Path, config=CONFIG, **settings) -> RunLog:
    defaults = {"start": 0, "units_per_step": 128, "unit": "examples", "flops_per_step": 1e6, "peak_flops": 1e9}
    return RunLog(run, config, **{**defaults, **settings})


def test_a_step_is_recorded_with_its_speed_and_share_of_the_peak(tmp_path, monkeypatch):
    clock = iter([100.0, 102.0, 110.0, 110.5])
    monkeypatch.setattr("twinstep.run_log.time.perf_counter", lambda: next(clock))
    with open_log(tmp_path) as log:
        log.train(4, 2.5, 0.02, 0.5, {"leaf_norms": [3.0], "update_norm/matrix": 0.25})  # four steps in two seconds
        log.skip_time()
        # One in half a second, without the eight of the evaluation between.
        log.train(5, 2.0, 0.01, 0.4, {"update_norm/matrix": float("inf")})
    assert read_metrics(tmp_path) == [
        {
            "step": 4,
            "loss": 2.5,
            "learning_rate": 0.02,
            "grad_norm": 0.5,
            "update_norm/matrix": 0.25,
            "examples_per_second": 256.0,
            "mfu": pytest.approx(2 * 1e6 / 1e9),
        },
        {
            "step": 5,
            "loss": 2.0,
            "learning_rate": 0.01,
            "grad_norm": 0.4,
            "examples_per_second": 256.0,
            "mfu": pytest.approx(2 * 1e6 / 1e9),
        },
    ]


def test_no_share_is_claimed_of_an_unknown_peak(tmp_path):
    with open_log(tmp_path, peak_flops=None, unit="tokens") as log:
        log.train(1, 2.5, 0.02, 0.5, {})
    assert set(read_metrics(tmp_path)[0]) == {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second"}


def test_an_evaluation_is_recorded_and_said(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.evaluation(3, {"val_loss": 1.25, "val_accuracy": 0.5})
    assert read_metrics(tmp_path) == [{"step": 3, "val_loss": 1.25, "val_accuracy": 0.5}]
    assert capsys.readouterr().out == "step 3: val_loss 1.2500, val_accuracy 0.5000\n"


def test_only_the_main_process_writes_and_speaks(tmp_path, capsys):
    config = replace(CONFIG, output=replace(CONFIG.output, tensorboard=True))
    with open_log(tmp_path, config, is_main=False) as log:
        log.train(1, 2.5, 0.02, 0.5, {})
        log.evaluation(1, {"val_loss": 1.0})
        log.say("hello")
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_cannot_drive_the_terminal(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.say("a\x1b[2Jb\x07\x9b\ttab\n[bold]plain[/bold] é")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x07\\x9b\ttab\n[bold]plain[/bold] é\n".expandtabs(8)


SAY = """
import sys
from pathlib import Path
from twinstep.presets import DEFAULTS
from twinstep.run_log import RunLog
log = RunLog(Path("."), DEFAULTS["linear"], start=0, units_per_step=1, unit="examples", flops_per_step=1,
             peak_flops=None)
with log:
    for line in range(int(sys.argv[1])):
        log.say("caf\\u00e9 \\u4e16 " * 100)
print("over", file=sys.stderr)
"""


def run_say(lines: int, tmp_path: Path, **settings) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings.pop("env", {})}
    argv = [sys.executable, "-c", SAY, str(lines)]
    return subprocess.Popen(
        argv, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_text_that_standard_output_cannot_show_is_spelled_out(tmp_path):
    out, err = run_say(1, tmp_path, env={"PYTHONIOENCODING": "ascii"}).communicate()
    assert err == "over\n"
    assert out.startswith("caf\\xe9 \\u4e16 ")


def test_a_run_outlives_whoever_reads_its_output(tmp_path):
    process = run_say(1000, tmp_path)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "over\n"
    process.stderr.close()
    assert process.wait() == 0


BAR = """
import time
from pathlib import Path
from twinstep.presets import DEFAULTS
from twinstep.run_log import RunLog
log = RunLog(Path("."), DEFAULTS["gpt"], start=0, units_per_step=4096, unit="tokens", flops_per_step=2.6e10,
             peak_flops=1e11)
with log:
    log.say("a line above")
    log.train(250, 2.3456, 0.02, 0.5, {})
"""


# Makes standard input the process's own terminal, so that Ctrl-C there is a signal to it.
TAKE_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"

# The same, ended by Ctrl-C.
INTERRUPTED = (
    BAR.replace("import time", "import time\nfrom twinstep.signals import StopRequest")
    + """
    with StopRequest() as stop:
        started = time.monotonic()
        while stop.signal is None and time.monotonic() < started + 60:
            time.sleep(0.01)
    log.train(260, 2.3456, 0.02, 0.5, {})
    log.say("interrupted")
"""
)


def sent_to_a_terminal(program: str, columns: int, place: Path, type_at: str = "") -> str:
    """What a terminal of so many columns is sent; Ctrl-C is typed once `type_at` is seen."""
    import fcntl
    import termios

    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL + program],
        cwd=place,
        env=environment,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    sent = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        sent += chunk
        if type_at and type_at in without_controls(sent.decode(errors="replace")):
            os.write(main, b"\x03")
            type_at = ""
    os.close(main)
    assert process.wait() == 0, sent
    return sent.decode()


def without_controls(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def seen_on_a_terminal(columns: int, place: Path) -> list[str]:
    """The lines that a terminal of so many columns is sent, without its control sequences."""
    text = without_controls(sent_to_a_terminal(BAR, columns, place))
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def left_on_the_screen(sent: str, columns: int) -> list[str]:
    """The lines of a terminal in the end: it wraps at its edge, and knows what rich asks of it."""
    lines, row, column = [""], 0, 0
    for code, character in re.findall(r"\x1b\[([0-9;?]*[A-Za-z])|(.)", sent, re.DOTALL):
        if code == "2K":
            lines[row] = ""
        elif code == "1A":
            row -= 1
        elif code:
            assert code[-1] in "mhl", code  # colours, the cursor shown or hidden
        elif character == "\r":
            column = 0
        else:
            if character == "\n" or column == columns:
                row, column = row + 1, 0 if character != "\n" else column
                lines += [""] * (row == len(lines))
            if character != "\n":
                lines[row] = lines[row].ljust(column)[:column] + character + lines[row][column + 1 :]
                column += 1
    return lines


@pytest.mark.parametrize("columns", [80, 120])
def test_after_ctrl_c_one_bar_is_left(columns, tmp_path):
    sent = sent_to_a_terminal(INTERRUPTED, columns, tmp_path, type_at="loss 2.3456")
    assert "^C" in sent
    screen = left_on_the_screen(sent, columns)
    bars = [line for line in screen if line.startswith("gpt ")]
    assert len(bars) == 1, screen
    assert "260/700" in bars[0]
    assert "interrupted" in screen


def test_the_bar_shows_loss_speed_share_of_the_peak_and_time_left_on_one_line(tmp_path):
    lines = seen_on_a_terminal(90, tmp_path)
    assert "a line above" in lines
    last = lines[-1]
    assert len(last) <= 90
    assert re.match(r"gpt ━+ *[━╸╺]* 250/700 loss 2\.3456, [\d,]+ tokens/s, \d+% of peak, .* left$", last), last


def test_without_a_terminal_there_is_no_bar(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", BAR],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (process.stdout, process.stderr) == ("a line above\n", "")


def read_events(folder: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every scalar in TensorBoard's event files: length, its CRC, message, its CRC."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "session", event.session_log.status))
    return found


def test_tensorboard_gets_every_number_and_a_resume_takes_back_what_it_repeats(tmp_path):
    config = replace(CONFIG, output=replace(CONFIG.output, tensorboard=True))
    with open_log(tmp_path, config) as log:
        log.train(1, 2.5, 0.25, 0.5, {"update_norm/matrix": 0.125})
        log.evaluation(1, {"val_loss": 1.5})
    found = read_events(tmp_path / "tensorboard")
    expected = {"loss": 2.5, "learning_rate": 0.25, "grad_norm": 0.5, "update_norm/matrix": 0.125, "val_loss": 1.5}
    assert {(1, name, value) for name, value in expected.items()} <= set(found)
    with open_log(tmp_path, config, start=1) as log:
        log.train(2, 2.0, 0.25, 0.5, {})
    after = read_events(tmp_path / "tensorboard")[len(found) :]
    assert (2, "session", 1) in after, "nothing says that events from step 2 on are void"
    assert (2, "loss", 2.0) in after


def test_weights_and_biases_offline_keeps_the_run_here_and_goes_on_with_it(tmp_path):
    pytest.importorskip("wandb", reason="twinstep[wandb] brings seventy megabytes that no other test needs")
    program = BAR.replace('DEFAULTS["gpt"]', "config").replace(
        "log = RunLog", 'from dataclasses import replace\nconfig = DEFAULTS["gpt"]\n'
        "config = replace(config, output=replace(config.output, wandb=True))\nlog = RunLog", 1,
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    identities = set()
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        identities.add((tmp_path / "wandb" / "id.txt").read_text())
    assert len(identities) == 1
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs
    assert all(run.name.endswith(identities.copy().pop()) for run in runs)
    assert all(list(run.glob("*.wandb")) for run in runs)


def test_a_tracker_that_cannot_be_opened_ends_in_one_line(tmp_path, monkeypatch):
    config = replace(CONFIG, output=replace(CONFIG.output, tensorboard=True))
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(UserError, match="cannot open the tracker"):
        open_trackers(tmp_path, config, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="No module named 'tensorboardX', which --tensorboard needs"):
        check_trackers(config)
    check_trackers(CONFIG)
