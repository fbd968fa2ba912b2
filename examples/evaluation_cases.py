"""What an evaluation asks of a model, and its answers: clips of data sets, tasks, seeds, and one file per sample.

    stickers = EvaluationStickers("stickers/animated/validation", "animated/validation", num_frames=8, seed=0)
    sets = write_real_clips([stickers], model.form, folder, accelerator)  # real clips, as files of the model's size
    tables = [clips_of_task(clip_set, EVALUATION_TASKS["it2v"], num_frames=8) for clip_set in sets]
    batches = make_batches(tables, seeds=3, batch_size=8)
    generate(pipeline, model, batches, 0, folder, accelerator)  # samples/<model>/<set>/it2v/<clip>-<seed>.webp

Everything random depends on the seed, the clip's number in its data set and the number of the try: not on other clips,
other models or the number of processes. What is there already is not made again.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.commands.output import slug
from rdtf_diffusers.data.animation import AnimationError, frames_to_clip, read_animation
from rdtf_diffusers.data.dataset import ClipMaker, draw_rows
from rdtf_diffusers.data.procedural import MOTIONS
from rdtf_diffusers.data.rows import check_files, fingerprint_rows, load_rows, read_row
from rdtf_diffusers.stickers.encode import encode
from rdtf_diffusers.training.collator import row_generator
from rdtf_diffusers.utils.files import write_whole


logger = logging.getLogger("evaluate")

FPS = 8.0  # of the files; a time that every viewer keeps


@dataclass(frozen=True)
class EvaluationTask:
    """One way to ask for a clip.

    Attributes:
        known: number of frames -> which frames are given.
        uses_text: whether the caption is given.
        needs_text: whether clips without a caption are left out.
        loop: whether the clip is to close without a seam; clips that cannot are left out.
    """

    name: str
    known: Callable[[int], Iterable[int]]
    uses_text: bool = True
    needs_text: bool = False
    loop: bool = False

    def condition_mask(self, num_frames: int) -> torch.Tensor:
        """(F,) bool, 1 = known."""
        mask = torch.zeros(num_frames, dtype=torch.bool)
        mask[list(self.known(num_frames))] = True
        return mask


EVALUATION_TASKS = {
    task.name: task
    for task in (
        EvaluationTask("it2v", lambda num_frames: [0], needs_text=True),
        EvaluationTask("t2v", lambda num_frames: [], needs_text=True),
        EvaluationTask("i2v", lambda num_frames: [0], uses_text=False),
        EvaluationTask("interpolation", lambda num_frames: range(0, num_frames, 3)),  # 10010010 of table 7
        EvaluationTask("prediction", lambda num_frames: range((num_frames + 1) // 2)),
        EvaluationTask("loop", lambda num_frames: [0], needs_text=True, loop=True),
    )
}


@dataclass(frozen=True)
class ClipForm:
    """Size and channels of a model's clips, 4 for premultiplied RGBA or 3 for RGB over white."""

    size: int
    channels: int

    @property
    def name(self) -> str:
        return f"{self.size}px" if self.channels == 4 else f"{self.size}px over white"

    @classmethod
    def from_name(cls, name: str) -> "ClipForm":
        """The form of that name."""
        size, _, background = name.partition("px")
        return cls(int(size), 3 if background else 4)


@dataclass(frozen=True)
class EvaluationClip:
    """One clip of a data set.

    Attributes:
        number: of its row in the data set.
        caption: what is asked for, "" if nothing is known.
        motion: the one motion that the caption asks for, a key of `MOTIONS`; None if it is not known, or not only one.
        may_loop: False if the caption asks for a motion that ends elsewhere than it begins, such as falling.
    """

    number: int
    caption: str
    motion: str | None = None
    may_loop: bool = True


@dataclass(frozen=True)
class ClipSet:
    """Clips that are reported together.

    Attributes:
        dataset: the name of the data set that they are from.
        skipped: how many of its files could not be read.
        procedural: whether they are stills that were set in motion by code.
    """

    dataset: str
    skipped: int
    procedural: bool
    clips: tuple[EvaluationClip, ...]

    @property
    def name(self) -> str:
        return set_name(self.dataset, self.procedural)


def set_name(dataset: str, procedural: bool) -> str:
    """What the animations of a data set are called in reports, or its stills, which were set in motion by code."""
    return f"{dataset}, set in motion" if procedural else dataset


@dataclass(frozen=True)
class TaskClips:
    """The clips of a set that a task is asked of: one table of the report.

    Attributes:
        set_name, dataset, skipped, procedural: of the `ClipSet`.
        condition_mask: (F,) bool, which of their frames are given.
    """

    set_name: str
    dataset: str
    skipped: int
    procedural: bool
    task: EvaluationTask
    clips: tuple[EvaluationClip, ...]
    condition_mask: torch.Tensor

    @property
    def num_frames(self) -> int:
        return len(self.condition_mask)

    @property
    def known(self) -> list[int]:
        """The numbers of the given frames."""
        return self.condition_mask.nonzero().flatten().tolist()


def clips_of_task(clip_set: ClipSet, task: EvaluationTask, num_frames: int) -> TaskClips:
    """What `task` is asked of a set.

    Raises:
        ValueError: it is fewer than two clips, which leaves nothing to be said about chance.
    """
    clips = tuple(clip for clip in clip_set.clips if clip.caption.strip() or not task.needs_text)
    clips = tuple(clip for clip in clips if clip.may_loop or not task.loop)
    if len(clips) < 2:
        kind = "clips with a caption" if task.needs_text else "clips"
        kind += " that can loop" if task.loop else ""
        raise ValueError(f"{clip_set.name}: {task.name} needs at least two {kind}, got {len(clips)}.")
    about = (clip_set.name, clip_set.dataset, clip_set.skipped, clip_set.procedural)
    return TaskClips(*about, task, clips, task.condition_mask(num_frames))


class EvaluationStickers:
    """A data set as clips of one length, the same at every visit: animations as they are, stills set in motion.

    An animation gives frames evenly spaced in time. A still is set in motion by code, and its caption says how.

    Args:
        source: a folder, file or Hub id, see `load_rows`.
        name: what the data set is called in reports.
        num_frames: F.
        seed: of which clips are taken, and of the motions.
        max_clips: take so many rows, drawn from the seed; all by default.
        options: of `load_rows`.

    Attributes:
        drawn: the numbers of the rows that are taken.
        facts: what decides the clips, but for their form.

    Raises:
        ValueError: as `load_rows`, or no row can be read.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        name: str,
        num_frames: int,
        seed: int,
        max_clips: int | None = None,
        **options: str | None,
    ):
        self.source, self.name, self.num_frames, self.seed = source, name, num_frames, seed
        self.rows = load_rows(source, **options)
        self.drawn: list[int] = draw_rows(len(self.rows), max_clips, seed).tolist()
        check_files(self.rows[number] for number in self.drawn)
        self.facts = {"rows": fingerprint_rows(self.rows), "num_frames": num_frames, "seed": seed}
        self.facts |= {"max_clips": max_clips, "clips": "with may_loop"}

    @cached_property
    def numbers(self) -> list[int]:
        """Those of `drawn` that can be read. The first use reads them all."""
        return [number for number in self.drawn if self._opens(number)]

    def _opens(self, number: int) -> bool:
        try:
            read_row(self.rows[number])
        except AnimationError as error:
            logger.warning("Skipped: %s", error)
            return False
        return True

    def read(self, number: int, form: ClipForm) -> tuple[torch.Tensor, EvaluationClip, bool]:
        """A row's clip (F, C, S, S) in [-1, 1], what is asked of it, and whether it was set in motion by code."""
        row = self.rows[number]
        animation = read_row(row)
        maker = ClipMaker(self.num_frames, form.size, form.channels, min_keyframes=1, max_keyframes=self.num_frames)
        if len(animation.frames) > 1:
            return maker.clip(animation.pick(self.num_frames)), EvaluationClip(number, row["text"]), False
        rng = np.random.default_rng([self.seed, number])
        clip, caption, motions = maker.set_in_motion(animation, row["text"], rng)
        may_loop = all(MOTIONS[motion].cyclic for motion in motions)
        return clip, EvaluationClip(number, caption, motions[0] if len(motions) == 1 else None, may_loop), True


@dataclass(frozen=True)
class ClipsInForm(Sequence):
    """The clips (F, C, S, S) of a data set in the size of a model, read when they are asked for."""

    stickers: EvaluationStickers
    form: ClipForm

    def __len__(self) -> int:
        return len(self.stickers.numbers)

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.stickers.read(self.stickers.numbers[place], self.form)[0]


def folder_name(name: str) -> str:
    """The folder of a model or set: its name as far as a folder can have it, with the whole number of `distinct`."""
    words, number = re.fullmatch(r"(.*?)(?: \((\d+)\))?", name, re.DOTALL).groups()
    return f"{slug(words)}-{number}" if number else slug(words)


def distinct(names: Iterable[str], reserved: Iterable[str] = ()) -> list[str]:
    """The names, with a number where one would share its folder with an earlier or a reserved one."""
    taken = {folder_name(name) for name in reserved}
    result = []
    for name in names:
        unique, number = name, 1
        while folder_name(unique) in taken:
            number += 1
            unique = f"{name} ({number})"
        taken.add(folder_name(unique))
        result.append(unique)
    return result


def clip_to_frames(clip: torch.Tensor) -> np.ndarray:
    """The reverse of `frames_to_clip`: a clip (F, C, H, W) in [-1, 1] -> straight frames (F, H, W, C) uint8."""
    pixels = clip.float().clamp(-1, 1).add(1).div(2)
    if clip.shape[1] == 4:
        colour, alpha = pixels[:, :3], pixels[:, 3:]
        pixels = torch.cat([torch.where(alpha > 0, (colour / alpha).clamp(max=1), 0.0), alpha], dim=1)
    return pixels.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def write_clip(file: Path, frames: np.ndarray) -> None:
    """Write straight frames (F, H, W, 3 or 4) uint8 as a lossless WebP, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, encode(frames, "webp", fps=FPS))


def read_clips(files: Sequence[Path], num_frames: int, form: ClipForm) -> torch.Tensor:
    """Files that `write_clip` wrote as clips (B, F, C, S, S) in [-1, 1]."""
    clips = [frames_to_clip(read_animation(file).pick(num_frames), form.size, form.channels) for file in files]
    return torch.stack(clips)


def real_file(folder: Path, form: ClipForm, set_name: str, clip: EvaluationClip) -> Path:
    """Where a real clip stands in the size of a model."""
    return folder / "real" / slug(form.name) / folder_name(set_name) / f"{clip.number:05d}.webp"


def sample_file(folder: Path, model: str, asked: TaskClips, clip: EvaluationClip, seed: int) -> Path:
    """Where a model's sample stands, try number `seed`."""
    place = folder / "samples" / folder_name(model) / folder_name(asked.set_name) / asked.task.name
    return place / f"{clip.number:05d}-{seed}.webp"


def write_real_clips(
    sources: Sequence[EvaluationStickers], form: ClipForm, folder: Path, accelerator: Accelerator
) -> list[ClipSet]:
    """Write every clip in a model's size, those that are not there yet; each process does its share.

    Returns:
        The animations and the moved stills of each source as sets. A single one beside many others is left out.
    """
    sets = []
    for stickers in sources:
        found = real_clips(stickers, form, folder, accelerator)
        for procedural in (False, True):
            clips = tuple(clip for clip, moved in found if moved == procedural)
            clip_set = ClipSet(stickers.name, len(stickers.drawn) - len(found), procedural, clips)
            if len(clips) == 1 and len(found) > 2:
                logger.warning("%s: left out, as it is one clip only.", clip_set.name)
            elif clips:
                sets.append(clip_set)
    return sets


def real_clips(
    stickers: EvaluationStickers, form: ClipForm, folder: Path, accelerator: Accelerator
) -> list[tuple[EvaluationClip, bool]]:
    """The clips of a data set, each with whether it was set in motion by code; their files are there afterwards.

    What they are called and show stands beside the files, so that another run need not decode them to know. It is
    written last: where it is missing or of other facts (the folder may hold files of a run that came to no sample),
    all files are written anew.
    """
    index = folder / "real" / slug(form.name) / f"{folder_name(stickers.name)}.json"
    noted = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    known = {}
    if noted.get("facts") == stickers.facts:
        known = {clip["number"]: (EvaluationClip(**clip), moved) for clip, moved in noted["clips"]}
    accelerator.wait_for_everyone()  # all have read it
    if accelerator.is_main_process and not known:
        index.unlink(missing_ok=True)
    numbers = stickers.drawn if not known else list(known)
    mine = numbers[accelerator.process_index :: accelerator.num_processes]
    clips = []
    for number in tqdm(mine, desc=stickers.name, leave=False, disable=not accelerator.is_local_main_process):
        if number in known and clip_file(stickers, form, folder, *known[number]).exists():
            clips.append(known[number])
            continue
        try:
            frames, clip, moved = stickers.read(number, form)
        except AnimationError as error:
            logger.warning("Skipped: %s", error)
            continue
        write_clip(clip_file(stickers, form, folder, clip, moved), clip_to_frames(frames))
        clips.append((clip, moved))
    clips = sorted(gather_object(clips), key=lambda found: found[0].number)
    if accelerator.is_main_process and not known:
        noted = {"facts": stickers.facts, "clips": [[asdict(clip), moved] for clip, moved in clips]}
        write_whole(index, (json.dumps(noted, ensure_ascii=False) + "\n").encode())
    accelerator.wait_for_everyone()
    return clips


def clip_file(stickers: EvaluationStickers, form: ClipForm, folder: Path, clip: EvaluationClip, moved: bool) -> Path:
    """`real_file` of a data set's clip."""
    return real_file(folder, form, set_name(stickers.name, moved), clip)


@dataclass(frozen=True)
class EvaluatedModel:
    """A pipeline that is measured.

    Attributes:
        name: in reports and of its folder.
        source: a folder or Hub id.
        settings: of the pipeline's call.
        form: of its clips.
        dtype: of its weights.
    """

    name: str
    source: str
    settings: dict[str, Any]
    form: ClipForm
    dtype: str


@dataclass(frozen=True)
class Batch:
    """Samples that are drawn together: try number `seed` of some of the clips of a task."""

    asked: TaskClips
    clips: tuple[EvaluationClip, ...]
    seed: int


def make_batches(tables: Sequence[TaskClips], seeds: int, batch_size: int) -> list[Batch]:
    """All samples of a model; a batch holds the same clips in every run, so that its rounding errors are the same."""
    return [
        Batch(asked, asked.clips[start : start + batch_size], seed)
        for asked in tables
        for seed in range(seeds)
        for start in range(0, len(asked.clips), batch_size)
    ]


def generate(
    pipeline: StickerGenerationPipeline,
    model: EvaluatedModel,
    batches: Sequence[Batch],
    seed: int,
    folder: Path,
    accelerator: Accelerator,
) -> None:
    """Draw and write the samples that are not there yet; each process takes its share of the batches.

    Raises:
        ValueError: the model's samples are not finite.
    """
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    for batch in tqdm(mine, desc=model.name, unit="batch", disable=not accelerator.is_local_main_process):
        files = [sample_file(folder, model.name, batch.asked, clip, batch.seed) for clip in batch.clips]
        if all(file.exists() for file in files):
            continue
        truths = [real_file(folder, model.form, batch.asked.set_name, clip) for clip in batch.clips]
        for file, frames in zip(files, draw_batch(pipeline, model, batch, truths, seed)):
            if not file.exists():
                write_clip(file, frames)
    accelerator.wait_for_everyone()


def draw_batch(
    pipeline: StickerGenerationPipeline, model: EvaluatedModel, batch: Batch, truths: Sequence[Path], seed: int
) -> np.ndarray:
    """The samples of a batch, straight (B, F, S, S, C) uint8; known frames are those of the real clips' files."""
    known, num_frames = batch.asked.known, batch.asked.num_frames
    real = [read_animation(file).pick(num_frames) for file in truths]
    frames = [[Image.fromarray(clip[f]) if f in known else None for f in range(num_frames)] for clip in real]
    samples = pipeline(
        prompt=[clip.caption for clip in batch.clips] if batch.asked.task.uses_text else None,
        frames=frames if known else None,
        num_frames=num_frames,
        height=model.form.size,
        width=model.form.size,
        loop=batch.asked.task.loop,
        generator=[row_generator(seed, f"{clip.number}:{batch.seed}") for clip in batch.clips],
        output_type="pt",
        **model.settings,
    ).frames  # (B, F, C, S, S), straight, in [0, 1]
    if not torch.isfinite(samples).all():
        raise ValueError(f"{model.source}: its samples are not finite numbers.")
    return samples.mul(255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
