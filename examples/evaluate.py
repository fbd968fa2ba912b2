"""Measure sticker models on data sets: the same conditions for all, figures with intervals, and a page to look at.

    accelerate launch examples/evaluate.py --pipeline my-model --dataset stickers/animated/validation \
        stickers/static/validation --tasks it2v interpolation prediction --seeds 3 --output_dir evaluation

Animations of a data set give real clips. Stills are set in motion by code, with captions that say how: these clips are
reported apart. `--output_dir` gets the samples as they are drawn, then results.json (everything), results.md (tables),
model-index.yml (for a model card) and index.html (samples side by side). The same command goes on where a killed run
stopped. More models, data sets, tasks and seeds can be added later; the report is of what this command names, so the
former ones have to be named again.

Exit codes: 0; 2 after one line about what the user has to put right; 130 after Ctrl-C.
"""

import argparse
import gc
import hashlib
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from diffusers.utils import logging as diffusers_logging
from evaluation_cases import (
    EVALUATION_TASKS,
    ClipForm,
    ClipsInForm,
    EvaluatedModel,
    EvaluationStickers,
    TaskClips,
    clips_of_task,
    distinct,
    folder_name,
    generate,
    make_batches,
    set_name,
    write_real_clips,
)
from evaluation_measures import (
    ROW_NAMES,
    Networks,
    load_networks,
    make_rows,
    measure_table,
    public_spec,
    try_measures,
)
from evaluation_report import markdown, model_index, page, page_clips
from step_trainer import positive_int, share
from torch.utils.data import ConcatDataset
from tqdm.auto import tqdm
from training_arguments import DefaultsHelp
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rdtf_diffusers import StickerGenerationPipeline, __version__, demo_checkpoint
from rdtf_diffusers.checkpoints import SETTINGS, generation_settings, override_settings
from rdtf_diffusers.commands.generate import check_hub_id, load_pipeline
from rdtf_diffusers.data.latents import fingerprint
from rdtf_diffusers.metrics.references import NearestTrainingClip
from rdtf_diffusers.utils.files import write_whole
from rdtf_diffusers.utils.hub import environment, is_hub_id, public_name
from rdtf_diffusers.utils.memory import is_out_of_memory


logger = logging.getLogger("evaluate")

RUN_FILE = "run.json"
CLIP_FOLDERS = ("real", "samples", "references", "given")  # of `output_dir`, with files of this script alone
UNFINISHED = re.compile(r"\.(\d{5}(-\d+)?\.webp|.+\.json)\.\d+")  # names that `write_whole` gives them at first


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False, formatter_class=DefaultsHelp
    )
    add = parser.add_argument
    add("--pipeline", nargs="+", help="Folders or Hub ids of models. Default: the one that comes with the package.")
    add("--dataset", nargs="+", required=True, help="Folders, JSONL or tar files, or Hub ids.")
    add("--dataset_split", default="validation", help="Of data sets that have several.")
    add("--image_column", help="Default: image, animation or what is usual.")
    add("--caption_column", help="Default: text, caption or what is usual.")
    add("--max_clips", type=positive_int, help="Stickers of each data set, drawn from all.")
    add("--train_dataset", nargs="+", default=[], help="What the models learnt from: adds the nearest training clip.")
    add("--tasks", nargs="+", choices=list(EVALUATION_TASKS), default=["it2v", "interpolation", "prediction"])
    add("--seeds", type=positive_int, default=3, help="Samples per clip.")
    add("--seed", type=int, default=0, help="Decides every random choice.")
    add("--output_dir", default="evaluation", help="What the run leaves.")
    add("--num_frames", type=int, default=8, help="Frames of a clip.")
    add("--resolution", type=positive_int, help="Height and width in pixels. Default: each model's own.")
    add(
        "--num_inference_steps",
        type=positive_int,
        help="Default of this and the next four: what the model comes with.",
    )
    add("--guidance_scale", type=float, help="How much the words count.")
    add("--image_guidance_scale", type=float, help="How much the given frames count.")
    add("--guidance_stop", type=share, help="Share of the steps in which these two count.")
    add("--eta", type=share, help="Share of fresh noise.")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="Default: float16 on CUDA, else float32.")
    add("--batch_size", type=positive_int, default=8, help="Clips that are drawn or measured together.")
    add("--features", nargs="*", default=["sticker"], help='"sticker", i3d:FILE, videomae:ID, frames:ID; for Frechet.')
    add("--padding", choices=["repeat"], help="How a network gets the frames that it needs and a clip has not.")
    add("--text_similarity", nargs="*", default=["sticker"], help='"sticker" or clip:ID.')
    add("--dover", help="A clone of DOVER with its weights: adds its score of quality.")
    words = sys.argv[1:] if args is None else args
    parsed = parser.parse_args(words)
    parsed.command = shlex.join(["evaluate.py", *map(public_word, words)])
    if parsed.num_frames < 3:
        parser.error(f"--num_frames must be at least 3 for flicker and loops to be seen, got {parsed.num_frames}")
    if parsed.seed < 0:
        parser.error(f"--seed must not be negative, got {parsed.seed}")
    parsed.tasks = list(dict.fromkeys(parsed.tasks))
    return parsed


def public_word(word: str) -> str:
    """A word of the command line as others may see it: no folders of this machine."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if not value:
        return word
    is_path = Path(value).is_absolute() or Path(value).exists()
    return option + equals + (public_name(value) if is_path else public_spec(value))


def component_fingerprint(component: Any) -> str | None:
    """Tells a pipeline's components apart: weights, a tokenizer, the settings of a scheduler."""
    if component is None:
        return None
    if isinstance(component, torch.nn.Module):
        return fingerprint(component)
    if isinstance(component, PreTrainedTokenizerBase):
        fast = component.backend_tokenizer.to_str() if component.is_fast else sorted(component.get_vocab().items())
        facts = [fast, component.model_max_length]
    else:
        facts = {name: value for name, value in component.config.items() if not name.startswith("_")}
    text = json.dumps([type(component).__name__, facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Of what decides samples and figures."""
    return {"rdtf_diffusers": __version__} | {name: version(name) for name in ("torch", "diffusers", "transformers")}


class RunFile:
    """What decides the samples in a folder, so that no others are mixed with them.

    Args:
        file: JSON, written by the main process.
    """

    def __init__(self, file: Path, accelerator: Accelerator):
        self.file, self.accelerator = file, accelerator
        try:
            self.facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{file} is no JSON file: {error}") from error
        accelerator.wait_for_everyone()

    def keep(self, group: str, facts: dict[str, Any], model: str = "*", sets: Iterable[str] = ("*",)) -> None:
        """Keep the facts of a group, such as "arguments"; others give way to them while they decide no sample.

        Args:
            model, sets: folders of the samples that they decide; all by default.

        Raises:
            ValueError: the folder has samples that were made with others; they are named.
        """
        known = self.facts.get(group, facts)
        samples = (self.file.parent / "samples").glob
        if known != facts and any(any(samples(f"{model}/{name}/*/*.webp")) for name in sets):
            names = [name for name in known | facts if known.get(name) != facts.get(name)]
            differences = ", ".join(f"{name} {known.get(name)}, not {facts.get(name)}" for name in names)
            raise ValueError(
                f"`output_dir` {self.file.parent} was begun with {differences} ({group}): give what it was begun "
                "with, or another folder."
            )
        self.facts[group] = facts
        if self.accelerator.is_main_process:
            write_whole(self.file, (json.dumps(self.facts, indent=1) + "\n").encode())


class Evaluation:
    """One run: the models' samples, then what is measured of them.

    Attributes:
        models: those whose samples are there, in the order of the arguments.
        tables: which clips each task is asked of; the same for all models.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        # others wait while the main process measures
        self.accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`output_dir` {self.folder} is a file.")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            remove_unfinished(self.folder)
        self.run_file = RunFile(self.folder / RUN_FILE, self.accelerator)
        names = ("seed", "num_frames", "max_clips", "batch_size")
        self.run_file.keep("arguments", {name: getattr(args, name) for name in names})
        self.versions = library_versions()
        self.run_file.keep("versions", self.versions)
        self.stickers = self.open_datasets(args.dataset, args.dataset_split, args.max_clips)
        self.training_stickers = self.open_datasets(args.train_dataset, "train", None)
        for stickers in self.stickers:
            sets = [folder_name(set_name(stickers.name, moved)) for moved in (False, True)]
            self.run_file.keep(f"data set {stickers.name}", stickers.facts, sets=sets)
        self.sources = self.find_models(args.pipeline or [demo_checkpoint()])
        self.models: list[EvaluatedModel] = []
        self.tables: list[TaskClips] = []
        self.networks: Networks | None = None

    def open_datasets(self, sources: Sequence[str], split: str, max_clips: int | None) -> list[EvaluationStickers]:
        """Data sets, each under a name of its own."""
        args = self.args
        options = {"split": split, "image_column": args.image_column, "caption_column": args.caption_column}
        return [
            EvaluationStickers(source, name, args.num_frames, args.seed, max_clips, **options)
            for source, name in zip(sources, distinct(map(public_name, sources)))
        ]

    def find_models(self, sources: Sequence[str]) -> dict[str, str]:
        """Folders and Hub ids by the names of the models, none of which is that of another row of the tables.

        Raises:
            ValueError: there is none.
        """
        for source in sources:
            if is_hub_id(source):
                check_hub_id(source, "--pipeline")
            elif not Path(source).is_dir():
                raise ValueError(f"`pipeline` {source}: there is no such folder.")
        return dict(zip(distinct(map(public_name, sources), ROW_NAMES), sources))

    def load(self, name: str, source: str) -> tuple[EvaluatedModel, StickerGenerationPipeline]:
        """A model, and how it is asked.

        Raises:
            ValueError, OSError: it cannot be loaded, or it is another one than that of the samples.
        """
        args = self.args
        given = {setting: getattr(args, setting) for setting in SETTINGS if getattr(args, setting) is not None}
        settings = override_settings(generation_settings(source), given)
        pipeline = load_pipeline(source, str(self.accelerator.device), args.dtype)
        pipeline.set_progress_bar_config(disable=True)
        size = args.resolution or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        dtype = str(pipeline.unet.dtype).removeprefix("torch.")
        model = EvaluatedModel(name, source, settings, ClipForm(size, pipeline.vae.config.in_channels), dtype)
        facts = {setting: settings.get(setting) for setting in (*SETTINGS, *settings)}
        parts = ("unet", "vae", "refiner", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
        facts |= {part: component_fingerprint(getattr(pipeline, part)) for part in parts}
        facts |= {"form": model.form.name, "dtype": dtype}
        self.run_file.keep(f"model {name}", facts, model=folder_name(name))
        return model, pipeline

    def prepare(self) -> None:
        """All that can fail before the first sample is drawn: every model is loaded once, every measure is tried."""
        args = self.args
        for name, source in self.sources.items():
            model = self.load(name, source)[0]
            sets = write_real_clips(self.stickers, model.form, self.folder, self.accelerator)
            self.models.append(model)
            gc.collect()  # before the next one comes; components know each other
        self.tables = [  # the same clips in every form
            clips_of_task(clip_set, EVALUATION_TASKS[task], args.num_frames)
            for clip_set in sets
            for task in args.tasks
        ]
        if self.accelerator.is_main_process:
            motions = any(asked.procedural and asked.task.uses_text for asked in self.tables)
            self.networks = load_networks(
                args.features, args.text_similarity, args.padding, args.dover, self.accelerator.device, motions
            )
            try_measures(self.tables, list({model.form for model in self.models}), self.networks, self.folder)
        self.accelerator.wait_for_everyone()

    def run(self) -> None:
        """Draws, measures, reports."""
        args = self.args
        self.prepare()
        batches = make_batches(self.tables, args.seeds, args.batch_size)
        for name, source in self.sources.items():
            model, pipeline = self.load(name, source)
            generate(pipeline, model, batches, args.seed, self.folder, self.accelerator)
            del pipeline
            gc.collect()
        if self.accelerator.is_main_process:
            self.report()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def report(self) -> None:
        """Measures all tables and writes what the run leaves."""
        args = self.args
        nearest = self.nearest_training_clips()
        results, shown = self.facts(), []
        for asked in tqdm(self.tables, desc="measuring", unit="table"):
            rows = make_rows(asked, self.models, args.seeds, self.folder, nearest)
            results["tables"].append(measure_table(asked, rows, self.networks, self.folder, args.batch_size))
            shown.append(page_clips(asked, rows, self.folder))
        files = {
            "results.json": json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "results.md": markdown(results),
            "model-index.yml": model_index(results),
            "index.html": page(results, shown),
        }
        for name, text in files.items():
            write_whole(self.folder / name, text.encode())
        logger.info("%s: %s", self.folder, ", ".join(files))

    def nearest_training_clips(self) -> dict[ClipForm, NearestTrainingClip]:
        """The clips of `--train_dataset`, to be searched in each size that models have."""
        sources, nearest = self.training_stickers, {}
        for form in dict.fromkeys(model.form for model in self.models) if sources else ():
            captions = None
            if "t2v" in self.args.tasks:  # where there is no frame to search for
                captions = [stickers.read(n, form)[1].caption for stickers in sources for n in stickers.numbers]
            clips = ConcatDataset([ClipsInForm(stickers, form) for stickers in sources])
            nearest[form] = NearestTrainingClip(clips, captions)
        return nearest

    def facts(self) -> dict[str, Any]:
        """What results.json says beside the tables."""
        args = self.args
        names = ("tasks", "seeds", "seed", "num_frames", "resolution", "max_clips", "batch_size", "padding")
        settings = {name: getattr(args, name) for name in names}
        settings |= {
            name: [public_name(source) for source in getattr(args, name)] for name in ("dataset", "train_dataset")
        }
        return {
            "command": args.command,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": environment(self.accelerator.num_processes)["hardware"],
            "versions": self.versions,
            "settings": settings,
            "datasets": [
                {"name": stickers.name, "hub_id": stickers.source if is_hub_id(stickers.source) else None}
                for stickers in self.stickers
            ],
            "models": [
                {
                    "name": model.name,
                    "source": public_name(model.source),
                    "form": model.form.name,
                    "dtype": model.dtype,
                    "settings": model.settings,
                }
                for model in self.models
            ],
            "tables": [],
        }


def remove_unfinished(folder: Path) -> None:
    """Files that a killed run was writing."""
    for clips in CLIP_FOLDERS:
        for file in (folder / clips).rglob(".*"):
            if UNFINISHED.fullmatch(file.name):
                file.unlink()


def main(args: list[str] | None = None) -> int:
    """Evaluates; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    logging.getLogger("rdtf_diffusers.pipelines").setLevel(logging.ERROR)  # which would report every text it cuts
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    parsed = parse_args(args)
    try:
        Evaluation(parsed).run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on behind the last sample", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "give a smaller --batch_size (and another --output_dir if there are samples already)"
        print(f"evaluate.py: error: the memory is full; {advice}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"evaluate.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
