"""The command line: `rdtf-diffusers generate "a dog jumping" --image dog.png --output dog.webp`.

Arguments are read and checked here; what a command does stands in `commands/`, which is imported when it runs, so that
`--help` answers at once. User errors end with one line and exit code 2.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from . import __version__
from .stickers.platforms import PLATFORMS
from .utils.memory import is_out_of_memory


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
SUFFIXES = (".webp", ".gif", ".png", ".apng", ".webm")


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


def writable_path(text: str) -> Path:
    """A place where a file can be written."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def readable_file(text: str) -> Path:
    """A file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def readable_folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def file_or_folder(text: str) -> Path:
    """A file that can be written, where the name has a sticker's suffix; a folder, to be made, where it has none."""
    path = Path(text)
    if path.is_dir():
        return path
    if path.suffix and path.suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"must end in one of {', '.join(SUFFIXES)}, or be a folder, not {text!r}")
    if path.suffix:
        return writable_path(text)
    if path.exists() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there can be no folder {text!r}")
    return path


def cover(text: str) -> str | int:
    """ "auto", "first" or the number of a frame."""
    if text in ("auto", "first"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be auto, first or the number of a frame, not {text!r}")
    return int(text)


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
    """FILE@INDEX as the frame's index, from 0, and the file."""
    file, _, index = text.rpartition("@")
    if not index.isdecimal() or not file:
        raise argparse.ArgumentTypeError(f"must be FILE@INDEX, the first frame being 0, not {text!r}")
    return int(index), file


def build_parser() -> Parser:
    """The whole command line."""
    parser = Parser(prog="rdtf-diffusers", description="Animated stickers from text and pictures.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_generate(commands)
    add_export(commands)
    add_check(commands)
    add_pack(commands)
    add_preview(commands)
    add_platforms(commands)
    add_check_data(commands)
    return parser


def add_platform(parser: Parser, required: bool, choices: Sequence[str] = (*PLATFORMS, "all")) -> None:
    parser.add_argument(
        "--platform",
        choices=choices,
        metavar="KEY",
        required=required,
        help=f"one of {', '.join(choices)}; `rdtf-diffusers platforms` says what each wants",
    )


def add_fitting(parser: Parser) -> None:
    """How a clip may be changed for a platform."""
    group = parser.add_argument_group("fitting a platform")
    group.add_argument(
        "--time",
        choices=["trim", "speed", "refuse"],
        default="trim",
        help="what happens to a clip that is too long: cut at a frame (default), played faster, or refused",
    )
    group.add_argument(
        "--cover",
        metavar="auto|first|N",
        type=cover,
        default="auto",
        help="the frame that a platform shows as a still; the loop is turned so that it comes first",
    )
    group.add_argument(
        "--format",
        choices=["webp", "gif", "apng", "webm"],
        help="one of the platform's formats (default: the one it prefers, or another that gives up less)",
    )


def add_generate(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`generate` and its options."""
    make = commands.add_parser(
        "generate",
        help="make an animated sticker",
        description="Makes an animated sticker from a prompt, a picture, or both. The small model that comes with the "
        "package draws it, offline, unless --model names another.",
    )
    make.set_defaults(run="generate.generate")
    make.add_argument(
        "prompt",
        nargs="*",
        default=[],
        type=str.strip,
        help="what a sticker shows, and how it moves; one sticker each",
    )
    make.add_argument(
        "--prompts-file", metavar="FILE", type=readable_file, help="more prompts, one a line; # begins a comment"
    )
    make.add_argument("--image", metavar="FILE", help="the picture that becomes the first frame")
    make.add_argument(
        "--keyframes",
        metavar="FILE@INDEX",
        type=keyframe,
        nargs="+",
        action="extend",
        default=[],
        help="pictures for any frames, the first being 0",
    )
    make.add_argument(
        "--output",
        metavar="FILE|FOLDER",
        type=file_or_folder,
        default="sticker.webp",
        help="%(default)s unless given; a file's suffix (.webp lossless, .gif, .png/.apng) says its format, and for "
        "several stickers a folder is made",
    )
    add_platform(make, required=False)
    make.add_argument("--frames", type=number(int, 1, 1000), default=8, help="how many frames (default: %(default)s)")
    make.add_argument("--fps", type=number(float, 0.1, 50), default=8.0, help="frames per second (default: 8)")
    make.add_argument("--loop", action="store_true", help="let the last frame lead back to the first")
    make.add_argument("--seed", type=number(int, 0, 2**63 - 1), help="repeat a sticker exactly (default: random)")
    make.add_argument(
        "--num", metavar="N", type=number(int, 1, 10_000), default=1, help="stickers of each prompt, seed by seed"
    )
    make.add_argument("--negative", metavar="TEXT", help="what a sticker must not show")
    make.add_argument("--size", metavar="PIXELS", type=number(int, 8, 4096), help="to draw at (default: the model's)")
    make.add_argument(
        "--model", metavar="ID|FOLDER", type=model_source, help="a checkpoint (default: the bundled one)"
    )
    make.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the machine's accelerator)")
    make.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float16 on CUDA")
    make.add_argument(
        "--no-metadata",
        dest="metadata",
        action="store_false",
        help="leave prompt, seed and settings out of the file, and write no FILE.json beside it",
    )
    make.add_argument("--json", action="store_true", help="print what was written for programs")
    add_fitting(make)
    tuning = make.add_argument_group("drawing", "the defaults are the checkpoint's own (generation.json)")
    tuning.add_argument(
        "--steps", dest="num_inference_steps", metavar="N", type=number(int, 1, 1000), help="denoising steps"
    )
    tuning.add_argument("--guidance-scale", metavar="X", type=number(float, 0, 100), help="weight of the prompt")
    tuning.add_argument(
        "--image-guidance-scale", metavar="X", type=number(float, 0, 100), help="weight of the pictures"
    )
    tuning.add_argument(
        "--guidance-stop", metavar="X", type=number(float, 0, 1), help="share of the steps in which both count"
    )
    tuning.add_argument("--eta", metavar="X", type=number(float, 0, 1), help="share of fresh noise in each step")


def add_export(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`export` and its options."""
    fit = commands.add_parser(
        "export",
        help="fit an animation to a platform's rules",
        description="Writes a GIF, WebP, APNG, WebM or TGS animation as a platform wants it: format, pixels, bytes, "
        "time and loops. Its speed is never changed silently.",
    )
    fit.set_defaults(run="export.export")
    fit.add_argument("file", metavar="FILE", type=readable_file, help="an animation")
    add_platform(fit, required=True)
    fit.add_argument(
        "--output",
        metavar="FILE|FOLDER",
        type=file_or_folder,
        help="a file, or a folder that is made (default: beside FILE, with the platform in its name)",
    )
    fit.add_argument("--json", action="store_true", help="print what was written for programs")
    add_fitting(fit)


def add_check(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`check` and its options."""
    look = commands.add_parser(
        "check",
        help="say which of a platform's rules a file breaks",
        description="Reads a sticker file anew and names every rule of the platform that it breaks; the exit code is "
        "1 if there are any.",
    )
    look.set_defaults(run="export.check")
    look.add_argument("file", metavar="FILE", type=readable_file)
    add_platform(look, required=True)
    look.add_argument("--json", action="store_true", help="print the result for programs")


def add_pack(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`pack` and its options."""
    build = commands.add_parser(
        "pack",
        help="build a set of stickers for a platform",
        description="Builds a sticker set of a folder's exported stickers: numbered files, the pictures that stand "
        "for the set, and what describes it. Where stickers break the platform's rules, they are named and nothing is "
        "written.",
    )
    build.set_defaults(run="export.pack")
    build.add_argument("folder", metavar="FOLDER", type=readable_folder)
    add_platform(build, required=True, choices=("whatsapp", "telegram", "line", "signal"))
    build.add_argument("--output", metavar="PATH", type=Path, help="default: beside FOLDER")
    build.add_argument("--title", help="default: the name of the output")
    build.add_argument("--author", default="anonymous")


def add_preview(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`preview` and its options."""
    show = commands.add_parser("preview", help="show all frames of an animation in one PNG")
    show.set_defaults(run="export.preview")
    show.add_argument("file", metavar="FILE", type=readable_file)
    show.add_argument("--output", metavar="PNG", type=writable_path, help="default: FILE.preview.png, suffix replaced")
    show.add_argument("--size", metavar="PIXELS", type=number(int, 8, 2048), default=128, help="of a frame")


def add_platforms(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`platforms` and its options."""
    table = commands.add_parser("platforms", help="print what every platform wants")
    table.set_defaults(run="export.platforms")
    table.add_argument("--json", action="store_true", help="with sources, for programs")


def add_check_data(commands: "argparse._SubParsersAction[Parser]") -> None:
    """`check-data` and its options."""
    look = commands.add_parser(
        "check-data",
        help="say what a data set holds",
        description="Reads every file of a data set and prints counts, times, sizes, copies, and what the default "
        "filters would drop. Files that cannot be read are named, and the exit code is 1 if there are any.",
    )
    look.set_defaults(run="data.check_data")
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

    0 is success, 1 a file that breaks rules or data with bad files, 2 a user error and 130 Ctrl-C.

    Raises:
        SystemExit: after `--help` and `--version`, and with code 2 if the arguments cannot be understood.
    """
    args = build_parser().parse_args(argv)
    module, _, function = args.run.partition(".")
    try:
        code = getattr(import_module(f".commands.{module}", __package__), function)(args)
        sys.stdout.flush()  # here, not when Python exits, where a reader that has left could only be complained about
        return code
    except KeyboardInterrupt:
        print("interrupted; files named above are whole, nothing else was written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it exits
        return 141  # 128 + SIGPIPE, as shells have it
    except (OSError, ValueError) as error:
        print(f"rdtf-diffusers {args.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "ask for less at a time: fewer or smaller frames, or one sticker"
        print(f"rdtf-diffusers {args.command}: error: the memory is full; {advice}", file=sys.stderr)
        return 2
