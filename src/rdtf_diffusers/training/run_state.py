"""A training run's surroundings: checkpoints that are whole or absent, and what the processor can do.

save_checkpoint(accelerator, output_dir, step, limit=3)
folder = find_checkpoint(output_dir, "latest")  # None: nothing saved yet
"""

import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator


logger = logging.getLogger(__name__)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Folders `checkpoint-STEP` in `output_dir`, lowest step first."""
    folders = [folder for folder in output_dir.glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """The optimiser step in the name of a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def find_checkpoint(output_dir: Path, wanted: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` asks for.

    Args:
        output_dir: the run's folder.
        wanted: None, "latest", or the name or path of a checkpoint folder.

    Returns:
        The folder; None if nothing is wanted, or the latest is and there is none yet (the run starts anew).

    Raises:
        ValueError: there is no such folder.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    for folder in (Path(wanted), output_dir / wanted):
        if folder.is_dir() and folder.name.rpartition("-")[2].isdigit():
            return folder
    raise ValueError(f"`resume_from_checkpoint` must be 'latest' or a folder checkpoint-STEP, got {wanted!r}.")


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Loads a checkpoint into everything that is registered with the accelerator.

    Raises:
        ValueError: the checkpoint is damaged, or of a run with other models or other arguments.
    """
    try:
        accelerator.load_state(str(folder))
    except (RuntimeError, KeyError, EOFError) as error:
        raise ValueError(f"{folder} does not fit this run, or is damaged: {error}") from error


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, limit: int | None = None) -> None:
    """Saves the accelerator's state as `checkpoint-STEP`, under a temporary name until it is whole.

    Args:
        accelerator: holds models, optimisers and everything registered for checkpointing. Call on every process.
        output_dir: the run's folder.
        step: optimiser steps done.
        limit: newest checkpoints to keep; older ones are deleted after the new one is whole. None keeps all.
    """
    folder, unfinished = output_dir / f"checkpoint-{step}", output_dir / f"unfinished-checkpoint-{step}"
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        for old in list_checkpoints(output_dir)[: -limit if limit else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def warn_if_bf16_is_slow(accelerator: Accelerator) -> None:
    """Says so if bfloat16 is asked for on a CPU that lacks the instructions for it, which makes it far slower."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16":
        return
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        logger.warning(
            "This CPU has no bfloat16 instructions: --mixed_precision bf16 makes a step many times as long as "
            "--mixed_precision no does."
        )
