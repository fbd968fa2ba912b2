"""The training script in processes of its own: two that share the work, killed ones, ones that are told to stop."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from example_scripts import EXAMPLES, load_example
from test_train_rdtf import arguments, assert_same_run, checkpoints, unet_weights
from tiny_models import TINY_UNET

from rdtf_diffusers import UNetDiscreteFrameModel
from rdtf_diffusers.training.history import read_history
from rdtf_diffusers.training.run_state import checkpoint_step, find_checkpoint, read_facts


SCRIPT = str(EXAMPLES / "train_rdtf.py")
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    return load_example("train_rdtf.py")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with the UNet that runs start from."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    sizes = {"in_channels": 8, "out_channels": 4, "cross_attention_dim": 16, "second_text_dim": None}
    UNetDiscreteFrameModel(**TINY_UNET, **sizes, sample_size=8).save_pretrained(folder / "unet")
    return folder


def test_two_processes_train_as_one_does(script, base, stickers, start, tmp_path):
    # a large epsilon makes Adam's step proportional to the gradient, so that rounding stays rounding
    more = ("--unet_model_name_or_path", start, "--adam_epsilon", 1, "--learning_rate", 1, "--loss_reduction", "valid")
    more = (*more, "--random_flip", "--use_ema", "--procedural_fraction", 0.5)
    two = arguments(base, stickers, tmp_path / "two", *more, "--train_batch_size", 1)
    one = arguments(base, stickers, tmp_path / "one", *more, "--train_batch_size", 2)
    launch = [*LAUNCH, "--multi_gpu", "--num_processes", "2"]
    subprocess.run([*launch, SCRIPT, *two], env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert script.main(one) == 0
    assert read_facts(tmp_path / "two" / "checkpoint-4")["processes"] == 2
    histories = [read_history(tmp_path / name / "history.jsonl") for name in ("two", "one")]
    for ours, theirs in zip(*histories, strict=True):
        assert ours["task"] == theirs["task"]
        for name in ("loss", "grad_norm", "pid/integral"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
    theirs = unet_weights(tmp_path / "one")
    for name, weight in unet_weights(tmp_path / "two").items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0)


KILLED_WHILE_SAVING = """
import os, runpy, signal, sys
from diffusers import ModelMixin
save, saved = ModelMixin.save_pretrained, []
def save_and_die(model, *args, **options):
    save(model, *args, **options)
    saved.append(model)
    if len(saved) == 2:  # the second checkpoint has weights, but no state of the optimiser yet
        os.kill(os.getpid(), signal.SIGKILL)
ModelMixin.save_pretrained = save_and_die
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(script, base, stickers, start, tmp_path):
    more = ("--unet_model_name_or_path", start, "--use_ema", "--max_train_steps", 5, "--lr_scheduler", "linear")
    more = (*more, "--resume_from_checkpoint", "latest")  # an epoch has three steps
    whole, killed = (arguments(base, stickers, tmp_path / name, *more) for name in ("whole", "killed"))
    driver = [sys.executable, "-c", KILLED_WHILE_SAVING, SCRIPT, *killed]
    run = subprocess.run(driver, env=ENVIRONMENT, capture_output=True, timeout=300)
    assert run.returncode == -signal.SIGKILL
    assert len(read_history(tmp_path / "killed" / "history.jsonl")) == 4
    assert find_checkpoint(tmp_path / "killed", "latest").name == "checkpoint-2"
    assert script.main(killed) == script.main(whole) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert checkpoints(tmp_path / "killed") == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def test_sigterm_to_the_process_or_to_its_group_saves_first(base, stickers, start, tmp_path):
    more = ("--unet_model_name_or_path", start, "--max_train_steps", 10**6, "--checkpointing_steps", 10**6)
    more = (*more, "--dataloader_num_workers", 1)
    launched = {}
    for name in ("process", "group"):
        command = [*LAUNCH, "--num_processes", "1", SCRIPT, *arguments(base, stickers, tmp_path / name, *more)]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        launched[name] = subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes)
    try:
        for name in launched:
            history = tmp_path / name / "history.jsonl"
            wait_for(lambda history=history: history.is_file() and len(history.read_bytes().splitlines()) > 2)
        (trainer,) = psutil.Process(launched["process"].pid).children()
        trainer.send_signal(signal.SIGTERM)
        os.killpg(launched["group"].pid, signal.SIGTERM)
        for name, process in launched.items():
            assert process.wait(60) != 0
            wait_for(lambda name=name: find_checkpoint(tmp_path / name, "latest") is not None, 60)
            folder = find_checkpoint(tmp_path / name, "latest")
            steps = [record["step"] for record in read_history(tmp_path / name / "history.jsonl")]
            assert checkpoint_step(folder) == steps[-1] == len(steps) > 2
    finally:
        for process in launched.values():
            if psutil.pid_exists(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
