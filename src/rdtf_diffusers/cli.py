"""The command line: `rdtf-diffusers generate "a dog jumping" --image dog.png --output dog.webp`.

What can be checked without a model is checked before one is loaded. User errors end with one line and exit code 2.
torch and diffusers are imported by the commands that need them, so that `--help` answers at once.
"""

import argparse
import os
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from . import __version__
from .checkpoints import SETTINGS, demo_checkpoint, generation_settings


if TYPE_CHECKING:
    from .pipelines.pipeline_sticker_generation import StickerGenerationPipeline


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`, both allowed."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {name} from {low:g} to {high:g}, not {text!r}")
        return value

    return parse


def output_path(text: str) -> Path:
    """A place where a sticker can be written, in a format that its suffix names."""
    from .stickers.encode import FORMATS

    if Path(text).suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"must end in one of {', '.join(FORMATS)}, not {text!r}")
    return writable_path(text)


def writable_path(text: str) -> Path:
    """A place where a file can be written."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def model_source(text: str) -> str:
    """A checkpoint's folder, or what may be a repository on the Hub."""
    if Path(text).exists():
        index = Path(text) / "model_index.json"
        if not index.is_file():
            raise argparse.ArgumentTypeError(f"{text!r} is no checkpoint: it holds no model_index.json")
        if '"_class_name"' not in index.read_text(encoding="utf-8", errors="replace"):
            raise argparse.ArgumentTypeError(f"{text!r} is no checkpoint: its model_index.json names no pipeline")
    elif not HUB_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a folder nor a Hub id of the form OWNER/NAME")
    return text


def data_source(text: str) -> str:
    """A folder, a list of files, a tar file, or what may be a data set on the Hub."""
    path = Path(text)
    if path.is_file() and path.suffix not in (".jsonl", ".tar"):
        raise argparse.ArgumentTypeError(f"{text!r} is a file, but neither .jsonl nor .tar")
    if not path.exists() and not HUB_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a file, nor a folder, nor a Hub id of the form OWNER/NAME"
        )
    return text


def keyframe(text: str) -> tuple[int, str]:
    """INDEX=FILE as the frame's index, from 0, and the file."""
    index, _, file = text.partition("=")
    if not index.isdecimal() or not file:
        raise argparse.ArgumentTypeError(f"must be INDEX=FILE, the first frame being 0, not {text!r}")
    return int(index), file


def known_frames(args: argparse.Namespace) -> list | None:
    """The given pictures (RGBA, PIL) at their places and None elsewhere; None where no picture is given.

    Raises:
        ValueError: if there is neither a prompt nor a picture, a place is outside the sticker or given twice, or a
            file is no picture.
    """
    places = [*args.keyframe, *([] if args.image is None else [(0, args.image)])]
    if not places and not args.prompt:
        raise ValueError("give a prompt, a picture (--image FILE), or both")
    indices = [index for index, _ in places]
    for index, file in places:
        if index >= args.frames:
            raise ValueError(f"{file!r} is for frame {index}, but the sticker's frames are 0 to {args.frames - 1}")
        if indices.count(index) > 1:
            raise ValueError(f"frame {index} is given {indices.count(index)} times")
        if not Path(file).is_file():
            raise ValueError(f"there is no file {file!r}")
    if not places:
        return None
    from PIL import Image

    from .data.animation import read_animation

    pictures = {index: Image.fromarray(read_animation(file).frames[0]) for index, file in places}
    return [pictures.get(index) for index in range(args.frames)]


def check_hub_id(model: str) -> None:
    """Asks the Hub, or the local cache, for a checkpoint before anything heavy is imported.

    Raises:
        ValueError: if there is none.
    """
    from huggingface_hub import hf_hub_download, logging
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    logging.set_verbosity_error()
    try:
        hf_hub_download(model, "model_index.json")
    except LocalEntryNotFoundError as error:
        raise ValueError(f"--model {model}: no such folder, not cached, and the Hub cannot be reached") from error
    except EntryNotFoundError as error:
        raise ValueError(f"--model {model}: the repository holds no model_index.json") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"--model {model}: no such folder, and no such (public) repository on the Hub") from error


def load_pipeline(model: str, device: str | None) -> "StickerGenerationPipeline":
    """The pipeline of a checkpoint on a device, by default the machine's accelerator if it has one.

    Raises:
        ValueError: if this machine has no such device, or the checkpoint cannot be loaded.
        OSError: if the checkpoint cannot be found or read.
    """
    import torch

    try:
        device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):  # before the imports that they would report
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    from .pipelines.pipeline_sticker_generation import StickerGenerationPipeline

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    pipe = StickerGenerationPipeline.from_pretrained(model, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=None, leave=False)  # shown only where stderr is a terminal
    return pipe


def generate(args: argparse.Namespace) -> int:
    """Makes one sticker, saves it, and prints where it is."""
    frames = known_frames(args)
    model = args.model or demo_checkpoint()
    if not Path(model).is_dir():
        check_hub_id(model)
    settings = generation_settings(model)
    settings |= {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    pipe = load_pipeline(model, args.device)
    print(f"model {model}, seed {seed}", file=sys.stderr)
    import torch

    from .stickers.encode import save_sticker

    sticker = pipe(
        prompt=args.prompt or None,
        frames=frames,
        num_frames=args.frames,
        loop=args.loop,
        generator=torch.Generator().manual_seed(seed),  # on the CPU: the same noise on every device
        **settings,
    ).frames[0]
    metadata = {"software": f"rdtf_diffusers {__version__}", "model": Path(model).name, "prompt": args.prompt}
    metadata |= {"seed": seed, "loop": args.loop, **settings}
    save_sticker(sticker, args.output, fps=args.fps, metadata=metadata if args.metadata else None)
    print(args.output)
    return 0


def check_data(args: argparse.Namespace) -> int:
    """Reads every file of a data set and prints what was found; 1 if there are files that cannot be read."""
    try:
        from huggingface_hub import logging

        from .data.latents import write_whole
        from .data.report import check
        from .data.rows import load_rows

        logging.set_verbosity_error()
        rows = load_rows(args.data, args.caption_column, args.image_column, args.split)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; it comes with pip install 'rdtf_diffusers[train]'") from error
    if args.limit is not None:
        rows = rows.select(range(min(args.limit, len(rows))))
    report = check(args.data, rows, workers=args.workers)
    files = {args.json: report.json, args.html: report.html}
    contents = {path: render(rows) for path, render in files.items() if path is not None}  # all, before any is written
    for path, content in contents.items():
        write_whole(path, content.encode())
    print(report.text())
    return 1 if report.bad else 0


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="rdtf-diffusers", description="Animated stickers from text and pictures.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_generate(commands)
    add_check_data(commands)
    return parser


def add_generate(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`generate` and its options."""
    make = commands.add_parser(
        "generate",
        help="make an animated sticker",
        description="Makes an animated sticker from a prompt, a picture, or both. The small model that comes with the "
        "package draws it, offline, unless --model names another.",
    )
    make.set_defaults(run=generate)
    make.add_argument("prompt", nargs="?", default="", type=str.strip, help="what the sticker shows, and how it moves")
    make.add_argument("--image", metavar="FILE", help="the picture that becomes the first frame")
    make.add_argument(
        "--keyframe",
        metavar="INDEX=FILE",
        type=keyframe,
        action="append",
        default=[],
        help="a picture for any frame, the first being 0; may be repeated",
    )
    make.add_argument(
        "--output",
        metavar="FILE",
        type=output_path,
        default="sticker.webp",
        help="%(default)s unless given; .webp (lossless), .gif or .png/.apng",
    )
    make.add_argument("--frames", type=number(int, 1, 1000), default=8, help="how many frames (default: %(default)s)")
    make.add_argument("--fps", type=number(float, 0.1, 50), default=8.0, help="frames per second (default: 8)")
    make.add_argument("--loop", action="store_true", help="let the last frame lead back to the first")
    make.add_argument("--seed", type=number(int, 0, 2**63 - 1), help="repeat a sticker exactly (default: random)")
    make.add_argument(
        "--model", metavar="ID|FOLDER", type=model_source, help="a checkpoint (default: the bundled one)"
    )
    make.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the machine's accelerator)")
    make.add_argument(
        "--no-metadata", dest="metadata", action="store_false", help="keep prompt and settings to yourself"
    )
    tuning = make.add_argument_group("drawing", "the defaults are the checkpoint's own (generation.json)")
    tuning.add_argument(
        "--steps", dest="num_inference_steps", metavar="N", type=number(int, 1, 1000), help="denoising steps"
    )
    tuning.add_argument("--guidance-scale", metavar="X", type=number(float, 0, 100), help="weight of the prompt")
    tuning.add_argument(
        "--image-guidance-scale", metavar="X", type=number(float, 0, 100), help="weight of the pictures"
    )
    tuning.add_argument("--eta", metavar="X", type=number(float, 0, 1), help="share of fresh noise in each step")


def add_check_data(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`check-data` and its options."""
    look = commands.add_parser(
        "check-data",
        help="say what a data set holds",
        description="Reads every file of a data set and prints counts, times, sizes, copies, and what the default "
        "filters would drop. Files that cannot be read are named, and the exit code is 1 if there are any.",
    )
    look.set_defaults(run=check_data)
    look.add_argument(
        "data", metavar="PATH", type=data_source, help="a folder, a JSONL or tar file, or a data set's id on the Hub"
    )
    look.add_argument("--html", metavar="FILE", type=writable_path, help="write a page with contact sheets")
    look.add_argument("--json", metavar="FILE", type=writable_path, help="write everything, for programs")
    look.add_argument(
        "--caption-column", metavar="NAME", help="the column with the captions (default: the usual ones)"
    )
    look.add_argument("--image-column", metavar="NAME", help="the column with the files (default: the usual ones)")
    look.add_argument("--split", default="train", help="the split (default: %(default)s)")
    look.add_argument("--limit", metavar="N", type=number(int, 1, 2**63 - 1), help="look at the first N rows only")
    look.add_argument(
        "--workers",
        metavar="N",
        type=number(int, 1, 1000),
        default=os.cpu_count() or 1,
        help="processes that read files (default: one a core)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's) and returns its exit code.

    0 is success, 1 a data set with bad files, 2 a user error and 130 Ctrl-C.

    Raises:
        SystemExit: after `--help` and `--version`, and with code 2 if the arguments cannot be understood.
    """
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"rdtf-diffusers {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
