"""The first samples of an evaluation in one picture, none left out: frame by frame, under the real clips.

    python examples/sample_sheet.py evaluation --set animated/validation --task it2v --output sheet.webp

Of each clip the upper row is the real one, the lower the model's first try. Everything is shown over white.
"""

import argparse
import json
import sys
from pathlib import Path

from evaluation_cases import EVALUATION_TASKS, ClipForm, EvaluationClip, TaskClips, real_file, sample_file
from PIL import Image
from step_trainer import positive_int

from rdtf_diffusers.data.animation import read_animation


GAP = 6  # pixels between clips


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, help="What evaluate.py left.")
    add("--set", required=True, help="Of clips, as results.md calls it.")
    add("--task", choices=list(EVALUATION_TASKS), default="it2v")
    add("--model", help="As results.md calls it; may be left out if there is one only.")
    add("--count", type=positive_int, default=32, help="Clips, in the order of the data set.")
    add("--columns", type=positive_int, default=2)
    add("--size", type=positive_int, default=48, help="Height and width of a frame in pixels.")
    add("--output", type=Path, default=Path("sheet.webp"))
    return parser.parse_args(args)


def find_clips(args: argparse.Namespace) -> tuple[list[tuple[Path, Path]], int]:
    """The files of real clips and of the model's first tries, and the number of their frames.

    Raises:
        ValueError: the evaluation has no such samples.
    """
    file = args.folder / "results.json"
    if not file.is_file():
        raise ValueError(f"{args.folder} holds no results.json of evaluate.py")
    results = json.loads(file.read_text(encoding="utf-8"))
    tables = results["tables"]
    table = next((table for table in tables if (table["set"], table["task"]) == (args.set, args.task)), None)
    if table is None:
        known = ", ".join(f"{table['set']} ({table['task']})" for table in tables)
        raise ValueError(f"{args.folder} has no {args.set} ({args.task}), but {known}")
    forms = {model["name"]: model["form"] for model in results["models"]}
    name = args.model or (next(iter(forms)) if len(forms) == 1 else None)
    if name not in forms:
        raise ValueError(f"--model must be one of {', '.join(forms)}, got {name}")
    num_frames, task = results["settings"]["num_frames"], EVALUATION_TASKS[args.task]
    clips = tuple(EvaluationClip(**clip) for clip in table["clips"][: args.count])
    about = (table[key] for key in ("set", "dataset", "skipped", "procedural"))
    asked = TaskClips(*about, task, clips, task.condition_mask(num_frames))
    form = ClipForm.from_name(forms[name])
    pairs = [
        (real_file(args.folder, form, args.set, clip), sample_file(args.folder, name, asked, clip, 0))
        for clip in clips
    ]
    return pairs, num_frames


def draw_strip(file: Path, num_frames: int, size: int) -> Image.Image:
    """The frames of a clip from left to right, over white."""
    strip = Image.new("RGB", (num_frames * size, size), "white")
    for place, frame in enumerate(read_animation(file).pick(num_frames)):
        picture = Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS)
        strip.paste(picture, (place * size, 0), picture)
    return strip


def draw_sheet(clips: list[tuple[Path, Path]], num_frames: int, columns: int, size: int) -> Image.Image:
    """All clips, row by row."""
    width, height = num_frames * size + GAP, 2 * size + GAP
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "lightgrey")
    for number, pair in enumerate(clips):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        for row, file in enumerate(pair):
            sheet.paste(draw_strip(file, num_frames, size), (left, top + row * size))
    return sheet


def main(args: list[str] | None = None) -> int:
    """Draws the sheet; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    parsed = parse_args(args)
    try:
        clips, num_frames = find_clips(parsed)
        draw_sheet(clips, num_frames, parsed.columns, parsed.size).save(parsed.output, quality=90)
    except (OSError, ValueError) as error:
        print(f"sample_sheet.py: error: {error}", file=sys.stderr)
        return 2
    print(parsed.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
