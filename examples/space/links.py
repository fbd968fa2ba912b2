"""Settings in the page's address: what a link carries, and what the fields begin with when somebody follows it."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr


EXAMPLES = Path(__file__).with_name("examples")
MAX_PROMPT = 200  # characters
ANY_SEED = -1  # stands for another one each time
RANGES = {
    "seed": (ANY_SEED, 2**32 - 1),
    "fps": (2, 25),
    "num_inference_steps": (1, 30),
    "guidance_scale": (1, 10),
    "image_guidance_scale": (1, 10),
}
"""The lowest and the highest value of each number."""

LINKED = ("prompt", "picture", "negative_prompt", "loop", *RANGES)


def example(name: str) -> str:
    """The path of an example picture."""
    return str(EXAMPLES / f"{name}.png")


def example_name(path: str) -> str | None:
    """The name of the example picture that a file is a copy of."""
    data = Path(path).read_bytes()
    return next((file.stem for file in sorted(EXAMPLES.glob("*.png")) if file.read_bytes() == data), None)


def link(settings: Mapping[str, Any]) -> str:
    """Settings as the query of a link to this page."""
    return "?" + urlencode({name: settings[name] for name in LINKED if name in settings})


def linked_value(name: str, text: str | None) -> Any:
    """What a field begins with; `gr.skip()` where the link says nothing that can be used.

    Only example pictures can be linked; without one the field is empty.
    """
    if name == "picture":
        return example(text) if text in {file.stem for file in EXAMPLES.glob("*.png")} else None
    if text is None:
        return "" if name.endswith("prompt") else gr.skip()
    if name.endswith("prompt"):
        return text[:MAX_PROMPT]
    if name == "loop":
        return text == "True"
    try:
        value = float(text)
    except ValueError:
        return gr.skip()
    low, high = RANGES[name]
    if not (isfinite(value) and low <= value <= high):
        return gr.skip()
    return int(value) if value == int(value) else value


def from_link(request: gr.Request) -> dict[str, Any]:
    """What the fields begin with, by name, as the query of the page's address says."""
    query = request.query_params
    if not set(query) & set(LINKED):
        return dict.fromkeys(LINKED, gr.skip())
    return {name: linked_value(name, query.get(name)) for name in LINKED}
