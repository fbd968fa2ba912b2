"""Checkpoints that are whole or absent, signals, and launches that are not what was asked for."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from rdtf_diffusers.training import run_state, signals
from rdtf_diffusers.training.run_state import (
    check_facts,
    check_processes,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_facts,
    save_checkpoint,
)
from rdtf_diffusers.training.signals import StopSignal, leave_signals_to_trainer


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test catches it."""


class Run:
    """A linear layer in training: its accelerator, and `advance` for one step."""

    def __init__(self, width: int = 64):
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(width, width)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters()))

    def advance(self) -> torch.Tensor:
        loss = self.model(torch.randn(2, self.model.in_features)).square().mean()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.model.weight.detach().clone()


@pytest.fixture
def run():
    return Run()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_at(monkeypatch, owner, name: str, call: int) -> None:
    """The given call (from 1) of a function kills the process instead."""
    real, calls = getattr(owner, name), []

    def call_or_die(*args, **options):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(owner, name, call_or_die)


def test_a_resumed_run_goes_on_bit_for_bit(run, tmp_path):
    run.advance()
    save_checkpoint(run.accelerator, tmp_path, step=1)
    expected = [run.advance() for _ in range(3)][-1]

    other = Run()
    folder = find_checkpoint(tmp_path, "latest", other.accelerator)
    load_checkpoint(other.accelerator, folder)
    assert [other.advance() for _ in range(3)][-1].equal(expected)


def test_nothing_saved_or_wanted_is_none(tmp_path):
    assert find_checkpoint(tmp_path / "new", "latest") is None
    assert find_checkpoint(tmp_path, None) is None
    with pytest.raises(ValueError, match="must be 'latest' or a folder checkpoint-STEP, got 'checkpoint-7'"):
        find_checkpoint(tmp_path, "checkpoint-7")


def test_manifest_lists_every_file(run, tmp_path):
    save_checkpoint(run.accelerator, tmp_path, 1)
    folder = tmp_path / "checkpoint-1"
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["step"] == 1
    assert sorted([*manifest["files"], "checkpoint.json"]) == names(folder)
    assert manifest["files"]["model.safetensors"]["size"] == (folder / "model.safetensors").stat().st_size


def test_the_newest_stay_and_a_smaller_limit_removes_several(run, tmp_path):
    for step in range(1, 5):
        save_checkpoint(run.accelerator, tmp_path, step, limit=3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    save_checkpoint(run.accelerator, tmp_path, 10, limit=1)
    assert names(tmp_path) == ["checkpoint-10"]


def test_a_new_run_in_an_old_folder_keeps_what_it_just_wrote(run, tmp_path, caplog):
    for step in (5, 6):
        save_checkpoint(run.accelerator, tmp_path, step)
    save_checkpoint(run.accelerator, tmp_path, 1, limit=2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-6"]
    assert "checkpoint-6 was there before checkpoint-1" in caplog.text


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Accelerator, "save_state", 1),
        (run_state, "seal", 1),
        (os, "fsync", 1),
        (os, "fsync", 4),
        (Path, "rename", 1),
    ],
)
def test_killed_while_saving_leaves_the_one_before(run, tmp_path, monkeypatch, caplog, owner, name, call):
    save_checkpoint(run.accelerator, tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        break_at(patch, owner, name, call)
        save_checkpoint(run.accelerator, tmp_path, 2, limit=1)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-1"
    assert not caplog.records
    save_checkpoint(run.accelerator, tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


# Calls of rename: the old one of this step away, the new one in its place, then to delete: the replaced, checkpoint-1.
@pytest.mark.parametrize(
    ("call", "latest", "kind"),
    [
        (1, "checkpoint-2", "old"),
        (2, "replaced-checkpoint-2", "old"),
        (3, "checkpoint-2", "new"),
        (4, "checkpoint-2", "new"),
    ],
)
def test_replacing_a_step_never_leaves_neither(run, tmp_path, monkeypatch, call, latest, kind):
    save_checkpoint(run.accelerator, tmp_path, 1)
    save_checkpoint(run.accelerator, tmp_path, 2, facts={"kind": "old"})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        break_at(patch, Path, "rename", call)
        save_checkpoint(run.accelerator, tmp_path, 2, limit=1, facts={"kind": "new"})
    found = find_checkpoint(tmp_path, "latest")
    assert (found.name, read_facts(found)["kind"]) == (latest, kind)
    save_checkpoint(run.accelerator, tmp_path, 2, limit=1, facts={"kind": "again"})
    assert names(tmp_path) == ["checkpoint-2"]
    assert read_facts(tmp_path / "checkpoint-2") == {"kind": "again"}


def test_killed_while_deleting_leaves_no_half_checkpoint(run, tmp_path, monkeypatch):
    save_checkpoint(run.accelerator, tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        break_at(patch, run_state.shutil, "rmtree", 1)
        save_checkpoint(run.accelerator, tmp_path, 2, limit=1)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def shorten(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def alter(folder: Path) -> None:
    file = folder / "optimizer.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "wrong"),
    [
        (lambda folder: (folder / "checkpoint.json").unlink(), r"checkpoint\.json is missing"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"step": 2'), r"checkpoint\.json cannot be read"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), r"checkpoint\.json must hold step, facts"),
        (lambda folder: (folder / "random_states_0.pkl").unlink(), r"random_states_0\.pkl is missing"),
        (shorten, r"model\.safetensors has \d+ bytes instead of \d+"),
        (alter, r"optimizer\.bin is not what was written"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_it_used(run, tmp_path, caplog, harm, wrong):
    for step in (1, 2):
        save_checkpoint(run.accelerator, tmp_path, step)
    harm(tmp_path / "checkpoint-2")
    assert find_checkpoint(tmp_path, "latest", run.accelerator).name == "checkpoint-1"
    (record,) = caplog.records
    assert re.search(rf"checkpoint-2 is damaged \({wrong}", record.getMessage())
    with pytest.raises(ValueError, match=wrong) as error:
        find_checkpoint(tmp_path, "checkpoint-2", run.accelerator)
    assert "\n" not in str(error.value)


def test_facts_that_differ_are_named(run, tmp_path):
    facts = {"unet": {"block_out_channels": (80, 112), "layers": 1, "act": "silu"}, "seed": 0}
    save_checkpoint(run.accelerator, tmp_path, 2, facts=facts)
    folder = tmp_path / "checkpoint-2"
    check_facts(folder, facts)  # tuples and lists are the same
    other = {"unet": {"block_out_channels": (16, 16), "layers": 1}, "seed": 0}
    with pytest.raises(ValueError) as error:
        check_facts(folder, other)
    differ = "unet.block_out_channels [80, 112], not [16, 16]; unet.act silu, not None"
    assert str(error.value) == f"checkpoint-2 is of another run: {differ}."


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(run, tmp_path):
    save_checkpoint(run.accelerator, tmp_path, 1)
    with pytest.raises(ValueError, match="size mismatch") as error:
        load_checkpoint(Run(width=8).accelerator, tmp_path / "checkpoint-1")
    assert "\n" not in str(error.value)


@contextmanager
def file_limit(size):
    """Limits the size of files this process can write, in bytes; the system then refuses, as with a full disk.

    No longer than needed: pytest's own output may be a file, too.
    """
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)


# 64 x 64 floats are 16 KB of weights (written by safetensors) and 32 KB of AdamW's moments (written by torch.save).
@pytest.mark.parametrize("size", [8_000, 24_000])
@pytest.mark.parametrize("earlier", [[], [1]])
def test_a_write_error_leaves_the_last_good_checkpoint(run, tmp_path, size, earlier):
    run.advance()
    for step in earlier:
        save_checkpoint(run.accelerator, tmp_path, step, limit=1)
    with file_limit(size), pytest.raises(OSError) as error:
        save_checkpoint(run.accelerator, tmp_path, 2, limit=1)
    whole = "checkpoint-1 is the newest whole one" if earlier else "there is no whole one yet"
    assert str(error.value) == f"checkpoint-2 could not be written to {tmp_path}: File too large; {whole}."
    assert names(tmp_path) == [f"checkpoint-{step}" for step in earlier]


TWO_PROCESSES = """
import os, signal, sys
from pathlib import Path
from accelerate import Accelerator
from rdtf_diffusers.training.run_state import check_processes, find_checkpoint, save_checkpoint
from rdtf_diffusers.training.signals import StopSignal

accelerator, folder = Accelerator(cpu=True), Path(sys.argv[1])
check_processes(accelerator)
rank = accelerator.process_index
with StopSignal() as stop:
    first = stop.received(accelerator)
    if rank == 1:
        signal.raise_signal(signal.SIGTERM)
    report = [accelerator.num_processes, first, stop.received(accelerator), int(stop.number)]
save_checkpoint(accelerator, folder, 1)
(folder / "checkpoint-1" / f"seen-{rank}").touch()
report.append(find_checkpoint(folder, "latest", accelerator).name)
try:
    find_checkpoint(folder, "checkpoint-5", accelerator)
except ValueError as error:
    report.append(str(error)[-15:])
if rank == 1:
    real, accelerator.save_state = accelerator.save_state, lambda to: open("/dev/full", "w").write("x" * 100_000)
try:
    save_checkpoint(accelerator, folder, 2)
except OSError as error:
    report.append(str(error).split(": ")[1])
(folder / f"rank-{rank}").write_text(repr(report))
accelerator.end_training()  # a process that ends with its group open may abort on the way out
"""


def test_two_processes_agree_on_everything(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", str(script), str(tmp_path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    full = "No space left on device; checkpoint-1 is the newest whole one."
    expected = repr([2, False, True, 15, "checkpoint-1", "'checkpoint-5'.", full])
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == [expected] * 2
    assert not list(tmp_path.glob("unfinished-*"))


def test_signals_are_remembered_and_handlers_restored(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    former = [signal.getsignal(number) for number in signals.STOPPING]
    with StopSignal() as stop:
        assert not stop.received(run.accelerator)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the same Ctrl-C or `kill`, passed on by the launcher
        assert stop.received(run.accelerator)
        assert stop.number == signal.SIGTERM
        now[0] += 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in signals.STOPPING] == former


def test_no_handlers_off_the_main_thread(run):
    former = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.received(run.accelerator)))

    seen = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(former, False)]


@pytest.mark.skipif(not hasattr(os, "setpgid"), reason="there are no process groups")
def test_signals_to_the_group_of_the_training_process_pass_its_workers_by():
    loader = DataLoader(range(4), num_workers=1, worker_init_fn=leave_signals_to_trainer)
    rows = iter(loader)
    next(rows)
    (worker,) = rows._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
    assert [int(row) for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but accelerate runs 1"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, "asked for several processes"),
    ],
)
def test_a_launch_that_is_not_what_was_asked_for_is_refused(run, monkeypatch, environment, message):
    for name in ("WORLD_SIZE", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    check_processes(run.accelerator)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{message}.*ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"):
        check_processes(run.accelerator)
