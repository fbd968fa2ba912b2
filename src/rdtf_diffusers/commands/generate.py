"""`rdtf-diffusers generate`: from prompts and pictures to sticker files."""

import argparse
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..checkpoints import SETTINGS, demo_checkpoint, generation_settings, override_settings
from ..utils.files import write_whole
from ..utils.memory import collection_paused, made_to_stay
from .output import report, slug, write_sidecar


if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines.pipeline_sticker_generation import StickerGenerationPipeline


def generate(args: argparse.Namespace) -> int:
    """Makes stickers of all prompts and seeds, saves them, and prints where they are."""
    prompts = all_prompts(args)
    with made_to_stay():
        frames = known_frames(args, bool(any(prompts)))
        model = args.model or demo_checkpoint()
        if not Path(model).is_dir():
            check_hub_id(model)
        given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
        settings = override_settings(generation_settings(model), given)
        first_seed = secrets.randbelow(2**32) if args.seed is None else args.seed
        jobs = [(prompt, first_seed + number) for prompt in prompts for number in range(args.num)]
        places = output_places(args, jobs)
        pipe = load_pipeline(model, args.device, args.dtype)
    print(f"model {model}, seed {first_seed}", file=sys.stderr)

    def stickers() -> Iterator[dict[str, Any]]:
        for number, (prompt, seed) in enumerate(jobs):
            if len(jobs) > 1:
                shown = prompt or "from pictures"
                print(f"sticker {number + 1} of {len(jobs)}: {shown}, seed {seed}", file=sys.stderr)
            sticker = draw(pipe, args, prompt, frames, seed, settings)
            metadata = {"software": f"rdtf_diffusers {__version__}", "model": Path(model).name, "prompt": prompt}
            metadata |= {"negative_prompt": args.negative} if args.negative else {}
            metadata |= {"seed": seed, "loop": args.loop, "fps": args.fps, **settings}
            yield from save(sticker, args, places[number], metadata)

    report(stickers(), args.json)
    return 0


def all_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of the command line and of `--prompts-file`; one empty one if there are none.

    Raises:
        ValueError: if the file cannot be read as text.
    """
    prompts = [prompt for prompt in args.prompt if prompt]
    if args.prompts_file is not None:
        try:
            lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts-file {args.prompts_file}: {error}") from error
        prompts += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return prompts or [""]


def known_frames(args: argparse.Namespace, has_prompt: bool) -> "list[Image.Image | None] | None":
    """The given pictures (RGBA) at their places and None elsewhere; None where no picture is given.

    Raises:
        ValueError: if there is neither a prompt nor a picture, a place is outside the sticker or given twice, or a
            file is no picture.
    """
    places = [*args.keyframes, *([] if args.image is None else [(0, args.image)])]
    if not places and not has_prompt:
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

    from ..data.animation import read_animation

    pictures = {index: Image.fromarray(read_animation(file).frames[0]) for index, file in places}
    return [pictures.get(index) for index in range(args.frames)]


def output_places(args: argparse.Namespace, jobs: list[tuple[str, int]]) -> list[Path]:
    """Where each sticker goes, without the platform's part of the name: the file itself, or one in the folder.

    Raises:
        ValueError: if one file is named for several stickers, or for all platforms.
    """
    is_file = bool(args.output.suffix) and not args.output.is_dir()
    if is_file and (len(jobs) > 1 or args.platform == "all"):
        raise ValueError(f"--output {args.output} is one file, but there will be several: name a folder")
    if is_file:
        return [args.output]
    return [args.output / f"{slug(prompt)}-{seed}.webp" for prompt, seed in jobs]


def check_hub_id(model: str, argument: str = "--model") -> None:
    """Asks the Hub, or the local cache, for a checkpoint before anything heavy is imported.

    Args:
        model: its id.
        argument: what the messages call it.

    Raises:
        ValueError: if there is none.
    """
    from huggingface_hub import hf_hub_download, logging
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    logging.set_verbosity_error()
    try:
        hf_hub_download(model, "model_index.json")
    except LocalEntryNotFoundError as error:
        raise ValueError(f"{argument} {model}: no such folder, not cached, and the Hub cannot be reached") from error
    except EntryNotFoundError as error:
        raise ValueError(f"{argument} {model}: the repository holds no model_index.json") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{argument} {model}: no such folder, and no such (public) repository on the Hub") from error


@collection_paused()
def load_pipeline(model: str, device: str | None, dtype: str | None) -> "StickerGenerationPipeline":
    """The pipeline of a checkpoint on a device, by default the machine's accelerator if it has one.

    Args:
        model: a folder or Hub id.
        device: such as "cuda:1".
        dtype: "float32", "float16" or "bfloat16"; by default float16 on CUDA and float32 elsewhere.

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
    from ..pipelines.pipeline_sticker_generation import StickerGenerationPipeline

    dtype = dtype or ("float16" if device.type == "cuda" else "float32")
    pipe = StickerGenerationPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(device)
    pipe.set_progress_bar_config(disable=None, leave=False)  # shown only where stderr is a terminal
    return pipe


def draw(
    pipe: "StickerGenerationPipeline",
    args: argparse.Namespace,
    prompt: str,
    frames: "list[Image.Image | None] | None",
    seed: int,
    settings: dict[str, float],
) -> "list[Image.Image]":
    """One sticker."""
    import torch

    size = {} if args.size is None else {"height": args.size, "width": args.size}
    return pipe(
        prompt=prompt or None,
        frames=frames,
        num_frames=args.frames,
        negative_prompt=args.negative,
        loop=args.loop,
        generator=torch.Generator().manual_seed(seed),  # on the CPU: the same noise on every device
        **size,
        **settings,
    ).frames[0]


def save(
    sticker: "list[Image.Image]", args: argparse.Namespace, path: Path, metadata: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Writes a sticker, or one file for each platform that was asked for; what was written, for `report`."""
    from ..stickers.encode import encode, sticker_format
    from .export import export_frames

    inside = metadata if args.metadata else None
    path.parent.mkdir(exist_ok=True)
    if args.platform is not None:
        results = export_frames(sticker, args, path, inside, fps=args.fps)
    else:
        write_whole(path, encode(sticker, sticker_format(path), fps=args.fps, metadata=inside))
        results = iter([{"path": str(path)}])
    for result in results:
        if inside:
            made = {name: value for name, value in result.items() if name not in ("path", "notes")}
            write_sidecar(Path(result["path"]), metadata | made)
        yield result | {"prompt": metadata["prompt"], "seed": metadata["seed"]}
