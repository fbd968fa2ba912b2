"""A training run's surroundings: checkpoints that are whole or absent, and what the launcher and processor give.

```python
save_checkpoint(accelerator, output_dir, step, limit=3, facts={"unet": dict(unet.config)})
folder = find_checkpoint(output_dir, "latest", accelerator)  # None: nothing saved yet
check_facts(folder, {"unet": dict(unet.config)})
load_checkpoint(accelerator, folder)
```

Folders in `output_dir`, which all machines of a run must share:
    checkpoint-STEP              whole: its checkpoint.json was written last, and the folder renamed to this after that
    unfinished-checkpoint-STEP   being written or deleted, or left by a killed run; the next save removes it
    replaced-checkpoint-STEP     whole; gives way to another checkpoint of its step
"""

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.constants import RNG_STATE_NAME
from safetensors import SafetensorError


logger = logging.getLogger(__name__)
MANIFEST = "checkpoint.json"
NAME = re.compile(r"(replaced-)?checkpoint-(\d+)")
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
SEVERAL_ON_CPU = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {} ..."


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """If the block fails on one process, raises on all: else the others would wait for that one for ever.

    Raises:
        Exception: the block's own, where it failed; elsewhere a ValueError or OSError with the same text.
    """
    own = None
    try:
        yield
    except Exception as error:
        own = error
    told = own and (ValueError if isinstance(own, ValueError) else OSError, getattr(own, "strerror", None) or str(own))
    failures = [failure for failure in gather_object([told]) if failure]
    if own:
        raise own
    if failures:
        kind, text = failures[0]
        raise kind(text)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders in `output_dir`, lowest step first; of one step, the replaced one before the other."""
    folders = [folder for folder in output_dir.glob("*checkpoint-*") if NAME.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: (checkpoint_step(folder), not folder.name.startswith("replaced-")))


def checkpoint_step(folder: Path) -> int:
    """The optimiser step in the name of a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def read_manifest(folder: Path) -> dict[str, Any]:
    """A checkpoint's `checkpoint.json`: `step`, `facts`, and `files`, the size and SHA-256 of every other file.

    Raises:
        ValueError: it is missing or unreadable.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not {"step", "facts", "files"} <= manifest.keys():
        raise ValueError(f"{MANIFEST} must hold step, facts and files")
    return manifest


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by reading all its files; None if it is whole."""
    try:
        manifest = read_manifest(folder)
        if manifest["step"] != checkpoint_step(folder):
            return f"{MANIFEST} is of step {manifest['step']}"
        for name, written in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != written["size"]:
                return f"{name} has {size} bytes instead of {written['size']}"
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                    return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def newest_whole(output_dir: Path) -> Path | None:
    """The newest checkpoint without damage, None if there are none at all; warns of damaged ones that are newer.

    Raises:
        ValueError: all are damaged; to start anew would overwrite what may still be saved.
    """
    for folder in reversed(list_checkpoints(output_dir)):
        wrong = damage(folder)
        if wrong is None:
            return folder
        logger.warning("%s is damaged (%s): the one before it is looked at.", folder, wrong)
    if list_checkpoints(output_dir):
        raise ValueError(f"Every checkpoint in {output_dir} is damaged: delete them to start anew.")
    return None


def named_checkpoint(output_dir: Path, wanted: str) -> Path:
    """The checkpoint of that name or path; ValueError if there is none, or it is damaged."""
    for folder in (Path(wanted), output_dir / wanted):
        if folder.is_dir() and NAME.fullmatch(folder.name):
            if wrong := damage(folder):
                raise ValueError(f"`resume_from_checkpoint`: {folder} is damaged: {wrong}.")
            return folder
    raise ValueError(f"`resume_from_checkpoint` must be 'latest' or a folder checkpoint-STEP, got {wanted!r}.")


def find_checkpoint(output_dir: Path, wanted: str | None, accelerator: Accelerator | None = None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` asks for.

    Args:
        output_dir: the run's folder.
        wanted: None, "latest", or the name or path of a checkpoint folder.
        accelerator: with it, the main process reads and checks the files and tells the others: call on every process.

    Returns:
        The folder, whole; for "latest" the newest that is, with a warning for damaged newer ones. None if nothing is
        wanted, or the latest is and there is none (the run starts anew).

    Raises:
        ValueError: there is no such folder, or it is damaged.
    """
    if wanted is None:
        return None
    found = [None]
    with fail_together(accelerator) if accelerator else nullcontext():
        if accelerator is None or accelerator.is_main_process:
            found = [newest_whole(output_dir) if wanted == "latest" else named_checkpoint(output_dir, wanted)]
    return broadcast_object_list(found)[0] if accelerator else found[0]


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts that were given to `save_checkpoint`, as JSON gives them back (tuples are lists)."""
    return read_manifest(folder)["facts"]


def differences(saved: Any, ours: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, as "unet.block_out_channels [80, 112], not [16, 16]"."""
    if isinstance(saved, dict) and isinstance(ours, dict):
        keys = dict.fromkeys([*saved, *ours])
        pairs = [(saved.get(key), ours.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [difference for pair in pairs for difference in differences(*pair)]
    return [] if saved == ours else [f"{name} {saved}, not {ours}"]


def check_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Refuses a checkpoint that was saved with other values of these facts.

    Raises:
        ValueError: names what differs, dotted, first the checkpoint's value.
    """
    saved = {name: value for name, value in read_facts(folder).items() if name in facts}
    if found := differences(saved, json.loads(json.dumps(facts))):
        raise ValueError(f"{folder.name} is of another run: {'; '.join(found)}.")


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Loads a checkpoint into everything that is registered with the accelerator.

    Raises:
        ValueError: the checkpoint is damaged, or of a run with other models or other arguments.
    """
    try:
        accelerator.load_state(str(folder))
    except (RuntimeError, KeyError, EOFError, OSError, SafetensorError, pickle.UnpicklingError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"{folder} does not fit this run, or is damaged: {reason}") from error
    if not (folder / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl").is_file():  # accelerate goes on silently
        logger.warning("%s is of a run with fewer processes: in this one, random numbers start anew.", folder)


def write_error(error: Exception, unfinished: Path) -> OSError:
    """The error of the system behind an error of torch.save, which does not tell, or of safetensors, which does."""
    if number := re.search(r"os error (\d+)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    files = [path for path in unfinished.rglob("*") if path.is_file()]
    try:  # torch.save stopped in the newest file, so the system refuses there again
        with max(files, key=lambda path: path.stat().st_mtime_ns, default=unfinished / "probe").open("ab") as file:
            file.write(bytes(1 << 16))
    except OSError as refused:
        return refused
    return OSError(textwrap.shorten(str(error), 300))


def sync_folder(folder: Path) -> None:
    """Has the names in a folder written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path, step: int, facts: dict[str, Any]) -> None:
    """Writes the manifest of a complete folder, and has every file and folder in it written to the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"step": step, "facts": facts, "files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(inner)


def remove_leftovers(output_dir: Path) -> None:
    """Removes what a killed run left half written or half deleted, and replaced checkpoints with a successor."""
    for folder in output_dir.glob("*-checkpoint-*"):
        prefix, _, name = folder.name.partition("-")
        unfinished = prefix == "unfinished" and NAME.fullmatch(name)
        if unfinished or (prefix == "replaced" and NAME.fullmatch(name) and (output_dir / name).exists()):
            shutil.rmtree(folder)


def remove_old(output_dir: Path, newest: Path, limit: int | None) -> None:
    """Deletes all but `newest` and the `limit` - 1 next ones; a kill never leaves half of one under its name."""
    others = [folder for folder in list_checkpoints(output_dir) if checkpoint_step(folder) != checkpoint_step(newest)]
    old = others[: max(0, len(others) - limit + 1)] if limit else []
    if others[len(old) :] and checkpoint_step(others[-1]) > checkpoint_step(newest):
        logger.warning("%s was there before %s, but 'latest' means the highest step.", others[-1].name, newest.name)
    for folder in [newest.with_name(f"replaced-{newest.name}"), *old]:
        if folder.exists():
            unfinished = folder.with_name(f"unfinished-checkpoint-{checkpoint_step(folder)}")
            try:
                shutil.rmtree(folder.rename(unfinished))
            except OSError as error:  # the new checkpoint is whole: the run goes on
                logger.warning("%s could not be deleted: %s", folder, error)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    step: int,
    limit: int | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Saves the accelerator's state as `checkpoint-STEP`, under a temporary name until it is whole and on the disk.

    Args:
        accelerator: holds models, optimisers and everything registered for checkpointing. Call on every process.
        output_dir: the run's folder.
        step: optimiser steps done. An existing checkpoint of this step is replaced.
        limit: newest checkpoints to keep; older ones are deleted after the new one is whole. None keeps all.
        facts: what a run that resumes must have in common with this one, as JSON values; see `check_facts`.

    Raises:
        OSError: on every process, if any could not write: says why, and which checkpoint is the newest whole one.
    """
    folder = output_dir / f"checkpoint-{step}"
    unfinished, replaced = (folder.with_name(f"{prefix}-{folder.name}") for prefix in ("unfinished", "replaced"))
    # Sharded models communicate while they are saved: who fails there is out of step with the others, and must not
    # wait for them. It raises at once, and the launcher ends the others.
    sharded = accelerator.distributed_type in SHARDED
    try:
        with fail_together(accelerator):
            if accelerator.is_main_process:
                remove_leftovers(output_dir)
        with nullcontext() if sharded else fail_together(accelerator):
            try:
                accelerator.save_state(str(unfinished))
            except (RuntimeError, SafetensorError) as error:
                raise write_error(error, unfinished) from error
        with fail_together(accelerator):  # also waits until every process has written
            if accelerator.is_main_process:
                seal(unfinished, step, facts or {})
                if folder.exists():
                    folder.rename(replaced)
                unfinished.rename(folder)
                sync_folder(output_dir)
    except OSError as error:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        last = next(reversed(list_checkpoints(output_dir)), None)
        whole = f"{last.name} is the newest whole one" if last else "there is no whole one yet"
        reason = error.strerror or error
        raise OSError(f"{folder.name} could not be written to {output_dir}: {reason}; {whole}.") from error
    if accelerator.is_main_process:
        remove_old(output_dir, folder, limit)
    accelerator.wait_for_everyone()


def check_processes(accelerator: Accelerator) -> None:
    """Refuses a launch of several processes that accelerate runs as one, or as so many runs of one each.

    `accelerate launch --num_processes 2` without a GPU starts a single process, with or without `--cpu`, and does not
    set WORLD_SIZE; that it was asked for more shows in MASTER_PORT alone. torchrun without ACCELERATE_USE_CPU starts
    two that do not know of each other.

    Raises:
        ValueError: with the command that works.
    """
    count = int(os.environ.get("WORLD_SIZE", accelerator.num_processes))
    if count != accelerator.num_processes:
        raise ValueError(
            f"WORLD_SIZE is {count}, but accelerate runs {accelerator.num_processes} process(es): without GPUs, start "
            f"with `{SEVERAL_ON_CPU.format(count)}`."
        )
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "WORLD_SIZE" not in os.environ
    if launched and "MASTER_PORT" in os.environ and accelerator.num_processes == 1:
        raise ValueError(
            "accelerate launch was asked for several processes (it set MASTER_PORT), but runs one: without GPUs, "
            f"start with `{SEVERAL_ON_CPU.format('N')}`; for one, unset MASTER_PORT and give --num_processes 1."
        )


def warn_if_bf16_is_slow(accelerator: Accelerator) -> None:
    """Says so if bfloat16 is asked for on a CPU that lacks the instructions for it, which makes it far slower."""
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "bf16":
        return
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        logger.warning(
            "This CPU has no bfloat16 instructions: --mixed_precision bf16 makes a step many times as long as "
            "--mixed_precision no does."
        )
