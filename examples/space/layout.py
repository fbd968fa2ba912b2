"""What a visitor of the Space sees: four tabs, and which button does what."""

from collections.abc import Callable
from pathlib import Path

import gradio as gr
import jobs
from cards import Card
from jobs import SLOTS
from links import ANY_SEED, EXAMPLES, MAX_PROMPT, RANGES, example, from_link
from pictures import PictureFile

from rdtf_diffusers.stickers.platforms import PLATFORMS


TITLE = "Animated stickers"
INTRODUCTION = f"""# {TITLE}
A moving sticker with a transparent background, from words, pictures, or both, and ready for chat platforms."""
EXAMPLE_PROMPTS = {"fish": "a fish swimming", "heart": "a heart beating", "star": "a star spinning"}
EXAMPLE_STICKER = str(EXAMPLES / "heart.webp")
EXAMPLE_KEYFRAMES = {1: "heart-small", 5: "heart"}
CHOSEN_PLATFORMS = ["whatsapp", "telegram", "discord"]
LAUNCH = {
    "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "css_paths": Path(__file__).with_name("style.css"),
    "max_file_size": jobs.UPLOAD_LIMITS["max_bytes"],
    "footer_links": ["api", "settings"],
    "run_history": False,
    "ssr_mode": False,
}

Panel = dict[str, gr.components.Component]
Targets = dict[str, tuple[str, PictureFile]]
"""Where a finished sticker can be sent: the button's text, the tab's id, and the picture there."""


def build() -> gr.Blocks:
    """The page; the model is loaded on the way."""
    jobs.pipeline()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(1800, 7200)) as page:
        gr.Markdown(INTRODUCTION)
        going_on, to_fit = (
            picture_field("Sticker: WebP, GIF or APNG", "large", value=EXAMPLE_STICKER, height=320, render=False)
            for _ in range(2)
        )
        with gr.Tabs() as tabs:
            targets = {"Continue it": ("continue", going_on), "Fit to platforms": ("export", to_fit)}
            with gr.Tab("Sticker", id="sticker"):
                fields = sticker_tab(tabs, targets)
            with gr.Tab("Keyframes", id="keyframes"):
                keyframes_tab(tabs, targets)
            with gr.Tab("Continue", id="continue"):
                continue_tab(tabs, targets, going_on)
            with gr.Tab("Export", id="export"):
                export_tab(to_fit)

        def fill(request: gr.Request) -> dict[gr.components.Component, object]:
            return {fields[name]: value for name, value in from_link(request).items()}

        page.load(fill, None, list(fields.values()), api_visibility="private", show_progress="hidden")
    return page.queue(max_size=24)


def picture_field(label: str, classes: str = "", **options: object) -> PictureFile:
    """A place for a picture or animation, over a checkerboard."""
    sources = {"sources": ["upload", "clipboard"]}
    return PictureFile(label=label, buttons=[], elem_classes=["checkerboard", classes], **(sources | options))


def prompt_box(value: str) -> gr.Textbox:
    return gr.Textbox(value, label="What happens", placeholder="a dog jumping", max_length=MAX_PROMPT, max_lines=1)


def settings_panel(loop: bool) -> Panel:
    """How a sticker is drawn, folded; by the argument names of `jobs.settings_of`."""
    values = {"fps": 8} | jobs.defaults()

    def slider(name: str, label: str, step: float) -> None:
        low, high = RANGES[name]
        panel[name] = gr.Slider(low, high, values[name], step=step, label=label)

    panel: Panel = {}
    with gr.Accordion("Settings", open=False):
        low, high = RANGES["seed"]
        panel["seed"] = gr.Number(
            ANY_SEED, label=f"Seed ({ANY_SEED}: another one each time)", precision=0, minimum=low, maximum=high
        )
        slider("fps", "Frames per second", 1)
        if loop:
            panel["loop"] = gr.Checkbox(True, label="Loop without a seam")
        slider("num_inference_steps", "Steps", 1)
        slider("guidance_scale", "Weight of the words", 0.5)
        slider("image_guidance_scale", "Weight of the pictures", 0.5)
        panel["negative_prompt"] = gr.Textbox("", label="What it must not show", max_length=MAX_PROMPT, max_lines=1)
    return panel


def draw_buttons() -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button("Make the sticker", variant="primary", scale=2), gr.Button("Again", min_width=100)


def result_panel(
    function: Callable,
    api_name: str,
    inputs: list[gr.components.Component],
    panel: Panel,
    buttons: tuple[gr.Button, gr.Button],
    prompt: gr.Textbox,
    tabs: gr.Tabs,
    targets: Targets,
) -> None:
    """Where a sticker appears, and everything that makes one appear there or takes it elsewhere."""
    image = picture_field("Result", "large", interactive=False, height=320, alt_text="The finished sticker")
    note = gr.Markdown("It appears here step by step, within a few seconds.")
    with gr.Row():
        download = gr.DownloadButton("Download", interactive=False, min_width=120)
        senders = [gr.Button(text, interactive=False, min_width=120) for text in targets]
    with gr.Accordion("How it was made (also inside the file)", open=False):
        made = gr.JSON(label="Settings", show_label=False)
    outputs = [image, note, made]
    shared = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal", "show_progress_on": image}
    make, again = buttons
    drawn = gr.on(
        [make.click, prompt.submit], function, inputs, outputs, inputs_kwargs=panel, api_name=api_name, **shared
    )
    any_seed = gr.Number(ANY_SEED, visible=False)
    redrawn = again.click(
        function, inputs, outputs, inputs_kwargs=panel | {"seed": any_seed}, api_visibility="private", **shared
    )
    for event in (drawn, redrawn):
        event.success(
            lambda path: (
                [gr.DownloadButton(value=path, interactive=True)] + [gr.Button(interactive=True)] * len(senders)
            ),
            image,
            [download, *senders],
            api_visibility="private",
            show_progress="hidden",
        )
    for sender, (tab, target) in zip(senders, targets.values()):
        sender.click(
            lambda path, tab=tab: (gr.Tabs(selected=tab), path),
            image,
            [tabs, target],
            api_visibility="private",
            show_progress="hidden",
        )


def sticker_tab(tabs: gr.Tabs, targets: Targets) -> Panel:
    """Words and a picture to a sticker; all fields that a link may fill."""
    with gr.Row():
        with gr.Column():
            (name, text), *_ = EXAMPLE_PROMPTS.items()
            prompt = prompt_box(text)
            picture = picture_field("Picture (optional)", value=example(name), height=240)
            buttons = draw_buttons()
            panel = settings_panel(loop=True)
            gr.Examples(
                [[text, example(name)] for name, text in EXAMPLE_PROMPTS.items()],
                [prompt, picture],
                example_labels=list(EXAMPLE_PROMPTS.values()),
                label="Or begin with",
                api_visibility="private",
            )
        with gr.Column():
            result_panel(jobs.sticker, "sticker", [prompt, picture], panel, buttons, prompt, tabs, targets)
    return {"prompt": prompt, "picture": picture, **panel}


def keyframes_tab(tabs: gr.Tabs, targets: Targets) -> None:
    """Pictures at any of eight places; the rest is drawn."""
    gr.Markdown("Put two to eight pictures where they belong in time. What lies between them is drawn.")
    with gr.Row(elem_classes="timeline"):
        slots = [
            picture_field(
                str(slot),
                value=example(EXAMPLE_KEYFRAMES[slot]) if slot in EXAMPLE_KEYFRAMES else None,
                height=130,
                min_width=76,
                placeholder="+",
                sources=["upload"],
            )
            for slot in range(1, SLOTS + 1)
        ]
    with gr.Row():
        with gr.Column():
            prompt = prompt_box("a heart beating")
            buttons = draw_buttons()
            panel = settings_panel(loop=True)
        with gr.Column():
            result_panel(jobs.keyframes, "keyframes", [prompt, *slots], panel, buttons, prompt, tabs, targets)


def continue_tab(tabs: gr.Tabs, targets: Targets, given: PictureFile) -> None:
    """A sticker and what comes after it."""
    with gr.Row():
        with gr.Column():
            gr.Markdown("The last frames of a sticker are given; what follows them is drawn and added to it.")
            given.render()
            kept = gr.Slider(1, SLOTS - 1, 3, step=1, label="Frames to go on from")
            prompt = prompt_box("a heart beating")
            buttons = draw_buttons()
            panel = settings_panel(loop=False)
        with gr.Column():
            result_panel(jobs.continued, "continue", [given, kept, prompt], panel, buttons, prompt, tabs, targets)


def export_tab(given: PictureFile) -> None:
    """A sticker as files that platforms take, each with the rules it keeps."""
    with gr.Row():
        with gr.Column():
            given.render()
        with gr.Column():
            platforms = gr.CheckboxGroup(
                [(platform.name, key) for key, platform in PLATFORMS.items()],
                value=CHOSEN_PLATFORMS,
                label="Platforms",
            )
            fit = gr.Button("Fit the sticker", variant="primary")
            note = gr.Markdown(
                "Each platform gets a file within its rules. It is shown below in real size, as in a chat."
            )
            archive = gr.DownloadButton("Download all as ZIP", interactive=False)
    cards = gr.State([])
    fitted = fit.click(
        jobs.export,
        [given, platforms],
        [cards, archive, note],
        api_name="export",
        concurrency_id="export",
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=given,
    )
    fitted.success(
        lambda: gr.DownloadButton(interactive=True), None, archive, api_visibility="private", show_progress="hidden"
    )
    gr.render(cards, show_progress="hidden")(show_cards)


def show_cards(cards: list[Card]) -> None:
    """One block for each platform: the sticker in real size in a light and a dark chat, and the rules."""
    for card in cards:
        key, name = card.platform
        with gr.Column(variant="panel", elem_classes="card", key=key):
            kept = sum(rule.kept for rule in card.rules)
            verdict = f"{mark(kept == len(card.rules))} {kept} of {len(card.rules)} rules" if card.path else "no file"
            gr.Markdown("  \n".join([f"### {name}: {verdict}", *card.notes]))
            if card.path is None:
                continue
            width, height = card.size
            with gr.Row():
                for chat in ("light", "dark"):
                    gr.Image(
                        card.preview,
                        show_label=False,
                        interactive=False,
                        buttons=[],
                        elem_classes=["chat", f"chat-{chat}"],
                        alt_text=f"{name} in a {chat} chat",
                        scale=0,
                        min_width=width,
                        height=height,
                    )
                with gr.Column(min_width=340):
                    rows = [f"| {mark(r.kept)} | {r.name} | {r.found} | {r.allowed} |" for r in card.rules]
                    gr.Markdown("\n".join(["| | Rule | This file | Allowed |", "|---|---|---|---|", *rows]))
                    gr.DownloadButton(f"Download {Path(card.path).name}", value=card.path, size="sm")


def mark(kept: bool) -> str:
    return "✓" if kept else "✗"
