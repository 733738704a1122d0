# SPDX-License-Identifier: Apache-2.0
"""Order of the rounds, errors, evidence: the runner over a lab that is made up.

Runner -> Case (made up) -> FakeLab: no process is started in a namespace
"""

import shutil
import subprocess
import sys
from typing import ClassVar

import pytest

from bench.__main__ import choose
from bench.build import compile_program
from bench.case import Case, Sample
from bench.lab import BenchError, Lab, Process
from bench.model import MODES, Metric, Report
from bench.runner import Runner, count_connects, count_rows, take_rows


class FakeLab(Lab):
    """Answers what a lab would: endpoints, device counters, a connection table."""

    def __init__(self, port=7100, path="slim"):
        super().__init__("no-such-lab")
        self.row = {"endpoint": "c1", "dport": port, "path": path, "bytes_sent": 7, "cookie": 1}
        self.idle: list[dict[str, object]] = []
        self.device = 0

    def has(self, endpoint):
        return endpoint in ("c1", "c2")

    def device_bytes(self, endpoint):
        return self.device

    def connections(self, endpoint):
        return [dict(self.row), *self.idle]

    def connects(self, endpoints):
        return {}


class Made(Case):
    """Records what the runner does with it."""

    name = "made"
    title = "Made up"
    kind = "program"
    metrics = (Metric("rate", "rate", "1/s", "higher"),)
    log: ClassVar[list[str]] = []
    broken = ""

    def start(self, mode):
        self.log.append(f"start {mode.name}")
        self.ports[mode.name] = {7100}
        if mode.name == self.broken:
            raise BenchError("does not start")

    def measure(self, mode):
        self.log.append(mode.name)
        assert isinstance(self.lab, FakeLab)
        if mode.name == "overlay":
            self.lab.device += 1000
        if mode.name == "slim":
            self.lab.row["bytes_sent"] += 7
        return Sample({"rate": 5.0})

    def stop(self, mode):
        self.log.append(f"stop {mode.name}")


@pytest.fixture
def made():
    class Fresh(Made):
        log: ClassVar[list[str]] = []

    return Fresh


def run(lab, case, tmp_path, rounds=2):
    report = Report("r", "now")
    Runner(lab, report, tmp_path, rounds=rounds, seconds=0.1, progress=lambda text: None).run(
        [case]
    )
    return report


def test_rounds_are_interleaved_each_begun_by_the_next_mode(made, tmp_path):
    report = run(FakeLab(), made, tmp_path, rounds=4)
    assert made.log == [
        *("start host", "start overlay", "start slim"),
        *("host", "overlay", "slim"),
        *("overlay", "slim", "host"),
        *("slim", "host", "overlay"),
        *("host", "overlay", "slim"),
        "slim",  # the proof
        *("stop slim", "stop overlay", "stop host"),
    ]
    assert report.problems == []
    assert report.series[0].rounds == [{"host": 5.0, "overlay": 5.0, "slim": 5.0}] * 4
    (proof,) = report.proofs
    assert proof.proven and proof.table_slim == 1 and proof.device_share == 0.0


def test_a_mode_that_does_not_start_is_an_error_and_the_others_go_on(made, tmp_path):
    made.broken = "overlay"
    report = run(FakeLab(), made, tmp_path)
    assert [p.mode for p in report.problems] == ["overlay"]
    assert report.series[0].rounds[0] == {"host": 5.0, "slim": 5.0}
    assert "stop overlay" in made.log


def test_overlay_rows_in_the_table_are_an_error(made, tmp_path):
    report = run(FakeLab(path="overlay"), made, tmp_path)
    assert [p.mode for p in report.problems] == ["slim"]
    assert "not proven" in report.problems[0].text


def test_a_connection_that_was_there_before_and_carries_nothing_does_not_count(made, tmp_path):
    lab = FakeLab()
    lab.idle = [{"endpoint": "c1", "dport": 7100, "path": "overlay", "cookie": 2}]
    report = run(lab, made, tmp_path)
    assert report.problems == []
    assert (report.proofs[0].table_slim, report.proofs[0].table_overlay) == (1, 0)


def test_a_program_that_is_not_installed_is_a_note(made, tmp_path):
    made.needs = ("no-such-program",)
    report = run(FakeLab(), made, tmp_path)
    assert "no-such-program" in report.notes[0] and made.log == []


def test_an_endpoint_that_the_lab_lacks_is_a_note(made, tmp_path):
    made.pairs = ("within",)
    report = run(FakeLab(), made, tmp_path)
    assert "c3" in report.notes[0] and made.log == []


def test_rows_of_other_ports_do_not_count():
    seen: dict[object, dict[str, object]] = {}
    take_rows([{"dport": 1}, {"dport": 7100, "path": "slim"}, {"sport": 7100}], {7100}, seen)
    assert len(seen) == 2


def test_overlay_rows_are_counted_with_their_reason():
    from bench.model import Proof

    proof = Proof("c", "across", "one")
    count_rows({1: {"path": "overlay", "why": "no-trunk"}, 2: {"path": "slim"}}, proof)
    assert (proof.table_slim, proof.table_overlay) == (1, 1)
    assert proof.reasons == {"no-trunk": 1}


def test_growth_of_the_counters_of_connects():
    from bench.model import Proof

    proof = Proof("c", "across", "one")
    before = {"warm": 5, "overlay_peer_not_listening": 2, "overlay_limit": 1}
    after = {"warm": 105, "cold": 1, "overlay_peer_not_listening": 2, "overlay_limit": 2}
    count_connects(before, after, proof)
    assert (proof.connects_slim, proof.connects_overlay) == (101, 1)
    assert proof.reasons == {"limit": 1}


def test_choice_by_name_prefix_and_kind():
    class Other(Made):
        name = "other"
        kind = "micro"

    cases = [Made, Other]
    assert choose("oth", cases) == [Other]
    assert choose("program,other", cases) == cases
    with pytest.raises(BenchError, match="made, other"):
        choose("nothing", cases)


def test_process_that_ends_early_tells_its_last_words():
    words = [sys.executable, "-c", "import sys; sys.exit('broken: no port')"]
    process = Process(words, "server")
    try:
        with pytest.raises(BenchError, match="broken: no port"):
            process.read_line(10)
    finally:
        process.stop()


def test_process_that_ignores_sigterm_is_killed(monkeypatch):
    code = "import signal, time; signal.signal(15, 1); print('up', flush=True); time.sleep(60)"
    process = Process([sys.executable, "-c", code], "server")
    assert process.read_line(10) == "up"
    monkeypatch.setattr(process._popen, "wait", bounded(process._popen.wait))
    process.stop()
    assert process._popen.returncode == -9


def bounded(wait):
    """Shorter patience, the same order."""
    return lambda seconds=None: wait(0.2 if seconds else seconds)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["stream", "roundtrip", "setup", "idle"])
def test_measuring_programs_compile_without_a_warning(name, tmp_path):
    binary = compile_program(name, tmp_path)
    usage = subprocess.run(
        [binary, "what"], capture_output=True, text=True, timeout=10, check=False
    )
    assert usage.returncode == (0 if name == "idle" else 2)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_setup_program_counts_what_fails(tmp_path):
    """Loopback only: a server that answers, then a port where nobody is."""
    binary = str(compile_program("setup", tmp_path))
    server = Process([binary, "serve", "127.0.0.1", "2"], "setup serve")
    try:
        ports = server.read_line(10).split()[1:]
        good = subprocess.run(
            [binary, "cold", "poll", "127.0.0.1", *ports],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert good.returncode == 0 and '"count": 2, "host_path": 0, "errors": 0' in good.stdout
    finally:
        server.stop()
    bad = subprocess.run(
        [binary, "cold", "block", "127.0.0.1", *ports],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert bad.returncode == 1 and '"errors": 2' in bad.stdout and "refused" in bad.stderr


def test_modes_say_how_the_server_is_reached():
    assert MODES["host"].address == "host"
    assert MODES["overlay"].address == MODES["slim"].address == "virtual"
