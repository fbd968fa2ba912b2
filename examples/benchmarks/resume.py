"""Kill a training run at random moments, go on each time, and compare its end with that of a run left alone.

    python examples/benchmarks/resume.py --kills 12

Both runs train the preset `tiny` on stickers drawn by code. The one is killed (SIGKILL to its process group) at
moments drawn evenly from its time of work, checkpoints included, and started again with `--resume_from_checkpoint
latest`.
What is printed: how often a kill struck while a checkpoint was being written, the optimiser steps that had to be done
again, and whether final weights, checkpoint and history are the same, bit for bit.
"""

import argparse
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data import draw_stickers
from denoiser import processor_name

from rdtf_diffusers.training.history import HISTORY_FILE, read_history


SCRIPT = Path(__file__).parents[1] / "train_rdtf.py"


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of a run")
    parser.add_argument("--checkpointing_steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1, help="processes that read data")
    parser.add_argument("--longest", type=float, default=8.0, help="seconds of work before a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser.parse_args(args)


def command(options: argparse.Namespace, stickers: Path, output_dir: Path) -> list[str]:
    """The training command of both runs."""
    words = {
        "preset": "tiny",
        "train_data_dir": stickers,
        "train_batch_size": 2,
        "max_train_steps": options.steps,
        "checkpointing_steps": options.checkpointing_steps,
        "checkpoints_total_limit": 2,
        "dataloader_num_workers": options.workers,
        "lr_scheduler": "cosine",
        "resume_from_checkpoint": "latest",
        "report_to": "none",
        "output_dir": output_dir,
    }
    arguments = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    return [sys.executable, str(SCRIPT), "--use_ema", *arguments]


def steps_done(folder: Path) -> int:
    history = folder / HISTORY_FILE
    return len(read_history(history)) if history.is_file() else 0


def run_and_kill(words: list[str], folder: Path, seconds: float) -> bool:
    """Starts a run and kills it `seconds` after its first step; False if it came to its end before."""
    before = (folder / HISTORY_FILE).stat().st_mtime_ns if (folder / HISTORY_FILE).is_file() else 0
    process = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        history = folder / HISTORY_FILE
        if history.is_file() and history.stat().st_mtime_ns > before and history.stat().st_size:
            break
        time.sleep(0.02)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return False


def same_files(ours: Path, theirs: Path) -> bool:
    """Whether every file below one folder is in the other with the same bytes."""
    names, others = ({p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} for folder in (ours, theirs))
    return names == others and all(filecmp.cmp(ours / name, theirs / name, shallow=False) for name in names)


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    moments = random.Random(options.seed)
    figures = {"processor": processor_name(), "kills": 0, "while saving": 0, "steps done again": 0}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "stickers").mkdir()
        draw_stickers(folder / "stickers", 10)
        alone, killed = (command(options, folder / "stickers", folder / name) for name in ("alone", "killed"))
        subprocess.run(alone, check=True, stderr=subprocess.DEVNULL)
        while figures["kills"] < options.kills:
            if not run_and_kill(killed, folder / "killed", moments.uniform(0, options.longest)):
                break
            figures["kills"] += 1
            unfinished = list((folder / "killed").glob("unfinished-*"))
            whole = [int(path.name.split("-")[1]) for path in (folder / "killed").glob("checkpoint-*")]
            figures["while saving"] += bool(unfinished)
            figures["steps done again"] += steps_done(folder / "killed") - max(whole, default=0)
            print(f"killed at step {steps_done(folder / 'killed')}, goes on from {max(whole, default=0)}", flush=True)
        subprocess.run(killed, check=True, stderr=subprocess.DEVNULL)
        last = f"checkpoint-{options.steps}"
        for name in ("unet", last, HISTORY_FILE):
            ours, theirs = folder / "alone" / name, folder / "killed" / name
            same = same_files(ours, theirs) if ours.is_dir() else filecmp.cmp(ours, theirs, shallow=False)
            figures[f"{name} is the same"] = same
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if not all(value for name, value in figures.items() if name.endswith("same")):
        raise SystemExit("the runs ended differently")


if __name__ == "__main__":
    main()
