"""How many threads a step on the CPU takes. Nothing here depends on real time: the clock is made of the steps."""

import re

import pytest
import torch

import fast_train
from fast_train.pipeline.config.recipe import resolve
from fast_train.pipeline.engine import runtime
from fast_train.pipeline.engine.build import build_augmenter, build_step
from fast_train.pipeline.engine.listener import Listener
from fast_train.pipeline.engine.threads import TunedStep, settle_threads
from fast_train.pipeline.loaders import Batch, build_loader
from fast_train.pipeline.run.plan import fit_to_data
from fast_train.pipeline.run.record import load

BATCH = Batch(torch.zeros(100, 1), torch.zeros(100), torch.zeros(100))


@pytest.fixture(autouse=True)
def _no_threads_are_started(monkeypatch):
    """torch keeps the number, but really computes with one: two on a busy machine are what this is all about."""
    kept = [1]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: kept.__setitem__(0, count))
    monkeypatch.setattr(torch, "get_num_threads", lambda: kept[0])


class Machine:
    """A step that takes ``seconds[threads]`` by a clock of its own, and is run for ``share`` of it."""

    def __init__(self, most, **options):
        self.seconds, self.now, self.cpu, self.share, self.lines, self.used = {}, 0.0, 0.0, 1.0, [], []
        clocks = {"clock": lambda: self.now, "cpu_clock": lambda: self.cpu}
        self.step = TunedStep(self._work, most=most, say=self.lines.append, **clocks, **options)

    def _work(self, batch):
        self.used.append(torch.get_num_threads())
        self.now += self.seconds[self.used[-1]]
        self.cpu += self.seconds[self.used[-1]] * self.used[-1] * self.share

    def run(self, seconds):
        """Steps for so long; the numbers of threads that they took."""
        begun, end = len(self.used), self.now + seconds
        while self.now < end:
            self.step(BATCH)
        return self.used[begun:]


IDLE, BUSY = {1: 0.1, 2: 0.06}, {1: 0.1, 2: 2.0}


@pytest.mark.parametrize(("seconds", "best"), [
    ({1: 0.1, 2: 0.06}, 2), ({1: 0.1, 2: 1.5}, 1), ({1: 0.5, 4: 0.2, 8: 0.1}, 8), ({1: 0.5, 4: 0.1, 8: 0.7}, 4),
    ({1: 0.1, 4: 0.5, 8: 0.7}, 1), ({1: 0.004, 2: 0.002}, 2), ({1: 9.0, 2: 70.0}, 1), ({1: 0.9, 3: 0.4}, 3),
])  # fmt: skip
def test_the_first_steps_try_one_half_and_all_threads_and_the_others_take_the_fastest(seconds, best):
    machine = Machine(max(seconds))
    machine.seconds = seconds
    tried = machine.run(2)
    while not machine.step.settled:
        tried += machine.run(0.01)
    assert set(tried) == set(seconds)
    assert set(machine.run(5)) == {best}
    assert torch.get_num_threads() == best
    assert len(machine.lines) == 1
    assert f"the fastest number of threads, {best} (" in machine.lines[0]


def test_trying_costs_little_where_it_can():
    machine = Machine(2)
    machine.seconds = BUSY
    tried = machine.run(3)
    assert tried.count(2) == 1, "one step shows that two threads are hopeless"
    large = Machine(64)
    large.seconds = {64: 1.0, 32: 1.9, 1: 60.0}
    assert 1 not in large.run(100), "a minute's step, although fewer threads were slower"


def test_torch_is_left_with_the_best_number_while_others_are_tried():
    """An evaluation may come in between."""
    machine = Machine(2)
    machine.seconds = BUSY
    left = []
    while not machine.step.settled:
        machine.run(0.01)
        left.append(torch.get_num_threads())
    assert left[-1] == 1
    assert set(left[machine.used.index(2) :]) == {1}


def test_a_rate_that_fell_by_half_is_measured_again_and_told_once():
    machine = Machine(2)
    machine.seconds = IDLE
    assert machine.run(60)[-1] == 2
    assert len(machine.lines) == 1, "nothing happened"
    machine.seconds = {1: 0.1, 2: 0.1}
    assert set(machine.run(60)) == {2}, "a rate above half of what it was is no reason"
    machine.seconds = BUSY
    machine.run(25)
    assert set(machine.run(5)) == {1}
    assert len(machine.lines) == 2
    assert re.match(r"the rate fell from 1,667 images/s to \d+ images/s, measured again: .*, 1 \(", machine.lines[1])
    machine.run(300)
    assert len(machine.lines) == 2, "the same number again is no news"


def test_a_busy_machine_that_becomes_idle_is_found_back():
    machine = Machine(2)
    machine.seconds = BUSY
    machine.run(120)
    tries = machine.used.count(2)
    assert tries * 2.0 <= 120 / 5, "trying two threads takes a small part of the time"
    machine.seconds = IDLE
    machine.run(120)
    assert machine.used[-1] == 2
    assert len(machine.lines) == 2


def test_where_one_thread_does_not_get_its_core_more_are_not_tried():
    """A step of them may take half a minute."""
    machine = Machine(2)
    machine.seconds, machine.share = {1: 0.15, 2: 25.0}, 0.67
    assert set(machine.run(300)) == {1}
    assert machine.lines == [
        "steps take the fastest number of threads, 1 (1: 667 images/s; other programs keep the cores busy)"
    ]
    machine.seconds, machine.share = IDLE, 1.0
    machine.run(60)
    assert machine.used[-1] == 2


def test_a_step_that_is_measured_itself_is_not_disturbed():
    machine = Machine(2, watches=False)
    machine.seconds = IDLE
    machine.run(3)
    machine.seconds = BUSY
    assert set(machine.run(100)) == {2}


class Seen(Listener):
    def __init__(self):
        self.threads, self.lines, self.notes = [], [], ()

    def on_start(self, start):
        self.notes = start.notes

    def on_epoch_begin(self, epoch, **counts):
        self.threads.append(torch.get_num_threads())

    def on_epoch_end(self, record):
        self.threads.append(torch.get_num_threads())

    def on_note(self, line):
        self.lines.append(line)


@pytest.fixture
def cores(monkeypatch):
    """Sets how many cores seem usable."""

    def use(count):
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(count)), raising=False)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    return use


def _train(prepared_path, folder, seen, **options):
    given = {"recipe": "cpu-quick", "batch_size": 60, "device": "cpu", "out": folder, "listeners": (seen,)}
    given |= {"optimizer": {"name": "sgd"}, **options}
    return fast_train.train(prepared_path, **given)


def test_a_training_finds_its_number_and_puts_torchs_back(prepared_path, tmp_path, cores, monkeypatch):
    cores(2)
    monkeypatch.setattr("fast_train.pipeline.engine.threads._TRIAL_SECONDS", 1e-9)
    torch.set_num_threads(3)
    seen = Seen()
    outcome = _train(prepared_path, tmp_path / "run", seen, steps=4)
    assert len(seen.lines) == 1
    assert seen.threads[0] == 2
    assert torch.get_num_threads() == 3
    assert outcome.config.run.threads is None


def test_a_number_that_is_given_stays(prepared_path, tmp_path, cores):
    cores(4)
    seen = Seen()
    outcome = _train(prepared_path, tmp_path / "run", seen, steps=2, threads=1)
    assert (set(seen.threads), seen.lines) == ({1}, [])
    assert outcome.config.run.threads == 1


def test_a_deterministic_run_keeps_the_number_that_it_began_with(prepared_path, tmp_path, cores):
    """The last bits of its sums depend on it; and what it switched on in torch is switched off again."""
    cores(2)
    seen = Seen()
    _train(prepared_path, tmp_path / "run", seen, deterministic=True, steps=1)
    assert (set(seen.threads), seen.lines) == ({2}, [])
    assert not torch.are_deterministic_algorithms_enabled()
    assert load(tmp_path / "run").config.run.threads == 2
    cores(1)
    for resume, stays in (("auto", ["note: run.threads stays 2, as the run began, not 1"]), (tmp_path / "run", [])):
        seen = Seen()
        options = {"deterministic": True} if resume == "auto" else {"recipe": None, "batch_size": 60}
        outcome = _train(prepared_path, tmp_path / "run" if resume == "auto" else None, seen, resume=resume, **options)
        assert outcome.config.run.threads == 2
        assert [note for note in seen.notes if "thread" in note][: len(stays)] == stays
        assert "steps of 2 threads are slow on 1 usable core; --threads 1" in seen.notes[-1]


def test_a_benchmark_measures_before_it_begins_and_changes_nothing(prepared, monkeypatch):
    monkeypatch.setattr("fast_train.pipeline.engine.threads._TRIAL_SECONDS", 1e-9)
    config = fit_to_data(resolve("cpu-quick", {"run": {"device": "cpu"}}), prepared)
    chosen = runtime.resolve_runtime(config.run)
    step = build_step(config, build_augmenter(config, prepared, chosen, train=True), chosen)
    before = [tensor.clone() for tensor in step.tensors()]
    with build_loader("resident", prepared, "train", batch_size=60) as loader:
        settle_threads(step, loader.example(), most=2)
    assert torch.get_num_threads() in (1, 2)
    assert all(torch.equal(*pair) for pair in zip(before, step.tensors(), strict=True))
