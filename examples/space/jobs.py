"""What the Space's buttons do: stickers drawn step by step from words and pictures, within limits.

Uploads are opened by `read_animation` alone, which refuses hostile files; texts of visitors stay data.
"""

import html
import itertools
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any


try:
    import spaces  # ZeroGPU's; it has to be imported before torch
except ModuleNotFoundError:
    spaces = None

import gradio as gr
import numpy as np
import torch
from cards import Card, make_card, pack
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from links import ANY_SEED, MAX_PROMPT, RANGES, example_name, link
from PIL import Image

from rdtf_diffusers import Animation, StickerGenerationPipeline, __version__, demo_checkpoint, read_animation
from rdtf_diffusers.checkpoints import generation_settings, override_settings
from rdtf_diffusers.commands.generate import load_pipeline
from rdtf_diffusers.commands.output import slug
from rdtf_diffusers.data.animation import evenly_timed
from rdtf_diffusers.stickers.encode import encode
from rdtf_diffusers.stickers.platforms import PLATFORMS
from rdtf_diffusers.stickers.resize import fit_canvas


MODEL = os.environ.get("MODEL") or demo_checkpoint()  # a Space's variable: a folder, or an id on the Hub
SLOTS = 8
MAX_CONTINUED = 24  # frames of a sticker that stay in front of what is drawn: three seconds
UPLOAD_LIMITS = {"max_bytes": 8 * 2**20, "max_frames": 150, "max_total_pixels": 2**25}
DRAW_SECONDS, EXPORT_SECONDS = 60, 120
CLICKS_PER_MINUTE = 20
PREVIEW_STEPS = 3  # every how many steps what is there is shown

Made = tuple[str, str, dict[str, Any] | None]
"""An animated file, a line about it in Markdown, and once it is finished how it was made."""

worker = ThreadPoolExecutor(max_workers=1)  # one sticker at a time, also after a visitor has gone in the middle of one


class RateLimit:
    """At most `calls` within `seconds` for each visitor.

    A visitor is an address, as the proxies in front of a Space report it. Who forges that header is still held by the
    queue, which bounds the load of all visitors together.
    """

    def __init__(self, calls: int, seconds: float):
        self.calls, self.seconds = calls, seconds
        self.times: dict[str, deque[float]] = {}
        self.lock = threading.Lock()

    def check(self, request: gr.Request) -> None:
        """Counts a call.

        Raises:
            gr.Error: if it is one too many.
        """
        visitor = request.headers.get("x-forwarded-for") or request.client.host
        now = time.monotonic()
        with self.lock:
            self.times = {name: times for name, times in self.times.items() if now - times[-1] < self.seconds}
            times = self.times.setdefault(visitor, deque(maxlen=self.calls))
            if len(times) == self.calls and now - times[0] < self.seconds:
                wait = self.seconds - (now - times[0])
                raise gr.Error(f"That was fast. Please wait {wait:.0f} seconds.", print_exception=False)
            times.append(now)


rate_limit = RateLimit(CLICKS_PER_MINUTE, 60)


@contextmanager
def errors_shown() -> Iterator[None]:
    """Shows what is wrong with a visitor's input to the visitor, as text."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


@cache
def pipeline() -> StickerGenerationPipeline:
    """The model, on the GPU if there is one; on a CPU one core is left to the server.

    A thread that waits busily for another one that the server keeps from running costs ten times what it gains.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    return load_pipeline(MODEL, "cuda" if torch.cuda.is_available() else None, None)


@cache
def defaults() -> dict[str, float]:
    """The settings that suit the model, as far as visitors may set them; the paper's scales where it does not say."""
    scales = {"guidance_scale": 7.5, "image_guidance_scale": 7.5, "eta": 1.0}
    settings = {"num_inference_steps": 25} | scales | generation_settings(MODEL)
    return settings | {
        name: min(max(settings[name], low), high) for name, (low, high) in RANGES.items() if name in settings
    }


def read(path: str, what: str) -> Animation:
    """An uploaded file.

    Raises:
        AnimationError: if it is none that is read; the message calls it `what`, as file names are the visitor's text.
    """
    return read_animation(path, what, **UPLOAD_LIMITS)


def read_picture(path: str, what: str) -> Image.Image:
    """The (first) picture of an uploaded file, RGBA; see `read`."""
    return Image.fromarray(read(path, what).frames[0])


def all_steps(settings: dict[str, Any]) -> int:
    """Of a sticker; a loop is drawn in two windows."""
    return settings["num_inference_steps"] * (2 if settings["loop"] else 1)


def gpu_seconds(known: list[Image.Image | None], settings: dict[str, Any]) -> int:
    """What to ask ZeroGPU for."""
    return 5 + all_steps(settings)


def lend_gpu(function: Callable) -> Callable:
    """Runs a function of `known` and `settings` where ZeroGPU has a GPU, and as it stands elsewhere."""
    return spaces.GPU(duration=gpu_seconds)(function) if spaces else function


@lend_gpu
def draw(known: list[Image.Image | None], settings: dict[str, Any]) -> Iterator[tuple[int, list[Image.Image]]]:
    """Draws a sticker; gives the number of steps done and the frames, every few steps of the first window and at the
    end.

    Args:
        known: pictures where frames are given and None elsewhere.
        settings: see `settings_of`.

    Raises:
        ValueError: as the pipeline.
        gr.Error: if it takes too long.
    """
    pipe, states, left = pipeline(), SimpleQueue(), threading.Event()
    steps, deadline = settings["num_inference_steps"], time.monotonic() + DRAW_SECONDS
    done = itertools.count(1)

    def after_step(pipe: StickerGenerationPipeline, step: int, timestep: int, tensors: dict) -> dict:
        if left.is_set() or time.monotonic() > deadline:
            raise gr.Error(f"Stopped after {DRAW_SECONDS} seconds. Try fewer steps.", print_exception=False)
        number = next(done)
        if number % PREVIEW_STEPS == 0 and number < steps:
            states.put((number, pipe.postprocess(pipe.decode_latents(tensors["latents"]), "pil")[0]))
        return {}

    drawn = worker.submit(
        pipe,
        prompt=settings["prompt"] or None,
        negative_prompt=settings.get("negative_prompt"),
        frames=known,
        loop=settings["loop"],
        generator=torch.Generator().manual_seed(settings["seed"]),  # on the CPU: the same noise on every device
        callback_on_step_end=after_step,
        **{name: settings[name] for name in defaults() if name in settings},
    )
    drawn.add_done_callback(lambda _: states.put(None))
    try:
        while (state := states.get()) is not None:
            yield state
        yield all_steps(settings), drawn.result().frames[0]
    finally:
        left.set()


def settings_of(
    prompt: str | None, *, seed: int | None, loop: bool, fps: float, negative_prompt: str | None, **scales: float
) -> dict[str, Any]:
    """All that a sticker is drawn with beside its pictures; for the seed -1, or none, one is thrown.

    Raises:
        ValueError: if a text is too long.
    """
    prompt, negative_prompt = (prompt or "").strip(), (negative_prompt or "").strip()
    if max(len(prompt), len(negative_prompt)) > MAX_PROMPT:
        raise ValueError(f"A text must have at most {MAX_PROMPT} characters.")
    made_with = {"software": f"rdtf_diffusers {__version__}", "model": Path(MODEL).name, "prompt": prompt}
    made_with |= {"negative_prompt": negative_prompt} if negative_prompt else {}
    seed = secrets.randbelow(RANGES["seed"][1] + 1) if seed in (None, ANY_SEED) else int(seed)
    chosen = {name: value for name, value in scales.items() if value != defaults()[name]}
    settings = made_with | {"seed": seed, "loop": loop, "fps": fps, **override_settings(defaults(), chosen)}
    return settings | {"num_inference_steps": round(settings["num_inference_steps"])}


def save(clip: np.ndarray, settings: dict[str, Any]) -> str:
    """A clip (F, H, W, 4), straight RGBA uint8, as a lossless WebP in Gradio's cache, its settings inside."""
    data = encode(clip, "webp", fps=settings["fps"], metadata=settings)
    return save_bytes_to_cache(data, f"{slug(settings['prompt'])}-{settings['seed']}.webp", get_upload_folder())


def make(known: list[Image.Image | None], settings: dict[str, Any], before: np.ndarray | tuple = ()) -> Iterator[Made]:
    """A sticker's previews and, last, the sticker itself.

    Args:
        known, settings: see `draw`.
        before: frames (N, H, W, 4), straight RGBA uint8 in the model's size, that stand in front of the drawn ones.
    """
    if not (settings["prompt"] or any(known)):
        raise ValueError("Say what happens, or give a picture.")
    started, steps = time.monotonic(), all_steps(settings)
    for step, frames in draw(known, settings):
        clip = np.stack([np.asarray(frame.convert("RGBA")) for frame in frames])
        if len(before):
            clip = np.concatenate([before, clip])
        path = save(clip, settings)
        if step < steps:
            yield path, f"Step {step} of {steps}", None
    facts = [
        f"{len(clip)} frames",
        f"{len(clip) / settings['fps']:.3g} s",
        f"{Path(path).stat().st_size:,} bytes",
        f"seed {settings['seed']}",
        f"drawn in {time.monotonic() - started:.1f} s",
    ]
    yield path, " · ".join(facts), settings


def sticker(prompt: str, request: gr.Request, picture: str | None = None, **panel: Any) -> Iterator[Made]:
    """A sticker from words, a picture, or both; the picture is its first frame."""
    rate_limit.check(request)
    with errors_shown():
        settings = settings_of(prompt, **panel)
        first = None
        if picture:
            first = read_picture(picture, "The picture")
            settings["picture"] = example_name(picture) or "yours"
        for path, note, made in make([first] + [None] * (SLOTS - 1), settings):
            yield path, note if made is None else f"{note} · [share link]({link(made)})", made


def keyframes(
    prompt: str,
    request: gr.Request,
    frame_1: str | None = None,
    frame_2: str | None = None,
    frame_3: str | None = None,
    frame_4: str | None = None,
    frame_5: str | None = None,
    frame_6: str | None = None,
    frame_7: str | None = None,
    frame_8: str | None = None,
    **panel: Any,
) -> Iterator[Made]:
    """A sticker through given pictures, each at its place; what lies between them is drawn."""
    rate_limit.check(request)
    with errors_shown():
        files = [frame_1, frame_2, frame_3, frame_4, frame_5, frame_6, frame_7, frame_8]
        settings = settings_of(prompt, **panel)
        settings["keyframes"] = [slot for slot, file in enumerate(files, 1) if file]
        if len(settings["keyframes"]) < 2:
            raise ValueError("Give at least two pictures: what lies between them is drawn.")
        known = [read_picture(file, f"Frame {slot}") if file else None for slot, file in enumerate(files, 1)]
        yield from make(known, settings)


def continued(animation: str, request: gr.Request, kept: float, prompt: str, **panel: Any) -> Iterator[Made]:
    """A sticker and what happens after it: its last frames are given, the ones that follow are drawn."""
    rate_limit.check(request)
    with errors_shown():
        if not animation:
            raise ValueError("Give a sticker to go on with.")
        settings = settings_of(prompt, loop=False, **panel)
        given = read(animation, "The sticker")
        count = max(1, min(round(given.durations.sum() / 1000 * settings["fps"]), UPLOAD_LIMITS["max_frames"]))
        # all in the model's size by one filter, so that nothing jumps where the known frames begin
        size = pipeline().unet.config.sample_size * pipeline().vae_scale_factor
        shown, again = np.unique(evenly_timed(given.durations, count)[-MAX_CONTINUED:], return_inverse=True)
        frames = fit_canvas(given.frames[shown], size, size)[again]  # a long frame is resized once
        known = [Image.fromarray(frame) for frame in frames[-int(kept) :]]
        settings["kept"] = len(known)
        before = frames[: len(frames) - len(known)]
        yield from make(known + [None] * (SLOTS - len(known)), settings, before)


def export(animation: str, request: gr.Request, platforms: list[str]) -> Iterator[tuple[list[Card], str | None, str]]:
    """A sticker fitted to platforms, one after the other: their cards, and at the end a ZIP."""
    rate_limit.check(request)
    with errors_shown():
        if not animation:
            raise ValueError("Give a sticker to fit.")
        if not platforms:
            raise ValueError("Choose a platform.")
        given = read(animation, "The sticker")
        cards, keys, deadline = [], list(dict.fromkeys(platforms)), time.monotonic() + EXPORT_SECONDS
        for key in keys:
            if time.monotonic() > deadline:
                raise gr.Error(
                    f"Stopped after {EXPORT_SECONDS} seconds. Choose fewer platforms.", print_exception=False
                )
            yield cards, None, f"Fitting for {PLATFORMS[key].name}: {len(cards) + 1} of {len(keys)}"
            cards = [*cards, make_card(given, PLATFORMS[key])]
        served = sum(card.path is not None for card in cards)
        yield cards, pack(cards), f"{served} of {len(cards)} platforms served"
