"""Publishing on the Hugging Face Hub: cards of models, and uploads that leave scratch files at home.

copy_attribution(["stickers/animated/train"], "my-model")
card = model_card("my-model", repo_id="me/my-model", data=["stickers/animated/train"], training={"steps": 50_000})
card.save("my-model/README.md")
add_evaluation("my-model", "evaluation")
url = push_to_hub("my-model", "me/my-model")
url = push_to_hub("stickers", "me/stickers", repo_type="dataset")  # `data.card.dataset_card` makes its card
"""

import json
import os
import platform
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

import torch
import yaml
from huggingface_hub import (
    CardData,
    DatasetCard,
    HfApi,
    ModelCard,
    ModelCardData,
    get_token,
    metadata_load,
    metadata_save,
)
from huggingface_hub.constants import REPO_TYPES_URL_PREFIXES
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

import rdtf_diffusers

from .. import baselines
from ..checkpoints import SETTINGS_FILE, generation_settings


ATTRIBUTION_FILE = "ATTRIBUTION.md"
LICENCES = "licences"  # a folder of texts that it names
SPLITS = ("train", "validation", "test")
ADAPTERS = {"I2V_ADAPTER": "I2VAdapterModel", "SIMDA": "SimDAModel", "LORA": "CustomizeAVideoModel"}  # by `peft_type`
# What a training run leaves beside the model; patterns of `fnmatch` on paths within the folder.
HIDDEN = (".*", "*/.*")  # all that stays at home of a data set, whose stickers may have any name
NOT_PUBLISHED = ("checkpoint-*", "unfinished-*", "replaced-*", "logs/*", "validation/*", *HIDDEN)
CARD_FILE = "README.md"
EVALUATION_FILE = "model-index.yml"  # of examples/evaluate.py
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}
{% if preview %}
![{{ preview_text }}]({{ preview }})
{% endif %}
{{ intro }}

## Use

```python
{{ snippet }}
```
{% if note %}
{{ note }}
{% endif %}
{%- if table %}
## {{ "Content" if is_data else "Training" }}

| | |
|---|---|
{% for name, value in table.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}
{%- endif %}
{%- if losses %}
Mean training loss at the end, by task:

| {{ losses | join(" | ") }} |
|{{ "---|" * (losses | length) }}
| {{ losses.values() | join(" | ") }} |
{% endif %}
{%- for plot in plots %}
![{{ plot }}]({{ plot }})
{% endfor %}
{%- set sources = "the sources of the " ~ ("stickers" if is_data else "training data") ~ " and their licences" %}
## {{ "Licences" if is_data else "Data and licences" }}
{% if data %}
Trained on {{ data | join(", ") }}.
{% endif %}
{%- if attribution %}
[{{ attribution }}]({{ attribution }}) names {{ sources }}.
{% else %}
Whoever publishes this {{ "data set" if is_data else "model" }} has to name {{ sources }} here.
{% endif -%}
{% if not card_license %}
No licence has been chosen for the {{ "data set" if is_data else "weights" }}.
{% endif %}"""


RepoType = Literal["model", "dataset"]
Card = TypeVar("Card", ModelCard, DatasetCard)


class Saveable(Protocol):
    """A pipeline, a model, an adapter: what can save itself."""

    def save_pretrained(self, folder: str) -> object: ...


def model_card(
    folder: str | os.PathLike,
    *,
    repo_id: str | None = None,
    prompt: str | None = None,
    base_models: Iterable[str | os.PathLike] = (),
    data: Iterable[str | os.PathLike] = (),
    license: str | None = None,
    training: Mapping[str, Any] | None = None,
    final_losses: Mapping[str, float] | None = None,
) -> ModelCard:
    """The README of a saved pipeline, model or adapter; `card.save(folder / "README.md")` writes it.

    What lies in the folder is shown: the first `*.webp` as a preview, every `*.png` as a plot, `generation.json` as
    arguments of the example, `ATTRIBUTION.md` as a link. Of folders elsewhere only the last name is written.

    Args:
        folder: Where the pipeline, model or adapter is saved.
        repo_id: Where it will be published, for the example; by default the folder's name stands there.
        prompt: What the preview shows, for the example too.
        base_models: Folders or Hub ids of parts that were not trained; of an adapter the pipeline that it belongs to,
            by default the repository that `adapter_config.json` names.
        data: Folders or Hub ids of the training data.
        license: Of the weights, as the Hub spells it ("apache-2.0").
        training: Rows of the training table: steps, arguments, `environment()`. None and empty values are left out.
        final_losses: By task, as `rdtf_diffusers.training.history.final_losses` gives them.

    Raises:
        ValueError: The folder holds no pipeline, model or adapter, or a damaged `generation.json`.
    """
    saved = _saved(folder := Path(folder))
    base_models, data = list(base_models) or saved.base_models, list(data)
    base = public_name(base_models[0]) if base_models else "base-model"
    hub_bases = [os.fspath(name) for name in base_models if is_hub_id(name)] or None
    preview = next((quote(file.name) for file in sorted(folder.glob("*.webp"))), None)
    card_data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="image-text-to-video",
        tags=["stickers", "animation", "adapter" if saved.kind == "adapter" else "rdtf"],
        base_model=hub_bases,
        base_model_relation="adapter" if hub_bases and saved.kind == "adapter" else None,
        datasets=[os.fspath(name) for name in data if is_hub_id(name)] or None,
    )
    name = repo_id or folder.absolute().name
    return fill_card(
        ModelCard,
        card_data,
        folder,
        name,
        table={"parts not trained": [public_name(name) for name in base_models], **(training or {})},
        intro=_intro(saved, base),
        note='`image=PIL.Image.open("dog.png")` sets a picture in motion.' if saved.kind == "pipeline" else None,
        preview=preview,
        preview_text=escape_markdown(prompt or "an animated sticker that this model made"),
        snippet=_snippet(saved, name, base, prompt, generation_settings(folder)),
        losses={task: f"{loss:.3f}" for task, loss in (final_losses or {}).items()},
        plots=[quote(file.name) for file in sorted(folder.glob("*.png"))],
        data=list(dict.fromkeys(map(_data_link, data))),
    )


def add_evaluation(
    folder: str | os.PathLike,
    evaluation: str | os.PathLike,
    name: str | None = None,
    measures: Sequence[str] | None = None,
) -> None:
    """Puts a model's figures into the head of its card, where the Hub looks for them, in place of older ones.

    Args:
        folder: The model's, with its card.
        evaluation: What `examples/evaluate.py` left: the folder, or the `model-index.yml` in it.
        name: What the model is called there; by default the name of its folder.
        measures: Which figures, as `type` names them; "frechet" means all of "frechet/...", None means all that there
            are.

    Raises:
        ValueError: There is no card, no evaluation, no model of that name in it, or none of its figures is of a
            measure; the names are listed.
    """
    card, file = Path(folder) / CARD_FILE, Path(evaluation)
    file = file / EVALUATION_FILE if file.is_dir() else file
    if not card.is_file():
        raise ValueError(f"`folder` {folder} has no {CARD_FILE}; save one with `model_card` first")
    index = yaml.safe_load(file.read_text(encoding="utf-8")) if file.suffix == ".yml" and file.is_file() else None
    if "model-index" not in (index or {}):
        raise ValueError(f"`evaluation` must be a folder with {EVALUATION_FILE}, or that file, got {evaluation}")
    entries = {entry["name"]: entry for entry in index["model-index"]}
    name = name or public_name(folder)
    if name not in entries:
        raise ValueError(f"`name` must be a model of {file}: {', '.join(entries)}; got {name!r}")
    entry = entries[name] if measures is None else with_measures(entries[name], measures)
    metadata_save(card, (metadata_load(card) or {}) | {"model-index": [entry]})


def with_measures(entry: dict[str, Any], measures: Sequence[str]) -> dict[str, Any]:
    """A model's entry of a `model-index` with figures of some measures alone; see `add_evaluation`."""
    types = {metric["type"] for result in entry["results"] for metric in result["metrics"]}
    wanted = {found for found in types if found in measures or found.partition("/")[0] in measures}
    if missing := [name for name in measures if not any(name in (found, found.partition("/")[0]) for found in wanted)]:
        raise ValueError(f"`measures` must be of {', '.join(sorted(types))}; got {', '.join(missing)}")
    results = [
        result | {"metrics": [metric for metric in result["metrics"] if metric["type"] in wanted]}
        for result in entry["results"]
    ]
    return entry | {"results": [result for result in results if result["metrics"]]}


def push_to_hub(
    what: str | os.PathLike | Saveable,
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    token: str | None = None,
    private: bool | None = None,
    ignore: Sequence[str] | None = None,
) -> str:
    """Uploads a folder, or an object that can be saved, to a repository, which is made if it is not there.

    Args:
        what: A folder, uploaded as it is; or a pipeline, model or adapter of `rdtf_diffusers.baselines`, saved with a
            model card in a temporary folder first. What came from a folder takes that one's `ATTRIBUTION.md`,
            licence and `generation.json` along.
        repo_id: "name" or "owner/name".
        repo_type: "model", or "dataset" for a folder of stickers or of prepared data.
        token: With the right to write; by default the one of `hf auth login` or `HF_TOKEN`.
        private: Of a new repository; None is what the account's settings say.
        ignore: Patterns of files that stay at home: by default `NOT_PUBLISHED` of a model, hidden files of a data set.

    Returns:
        The address of the repository.

    Raises:
        ValueError: No token, a `repo_id` that cannot be one, no such folder, or an object as a data set.
        OSError: The Hub refuses or cannot be reached. The message says how to upload the folder later.
    """
    is_folder = isinstance(what, str | os.PathLike)
    if is_folder and not Path(what).is_dir():
        raise ValueError(f"`what` must be a folder or an object with `save_pretrained`, got {what!r}")
    if not is_folder and repo_type != "model":
        raise ValueError(f"`what` must be a folder for a `repo_type` of {repo_type!r}, got {type(what).__name__}")
    if ignore is None:
        ignore = NOT_PUBLISHED if repo_type == "model" else HIDDEN
    if is_folder:
        command = ["hf", "upload", repo_id, os.fspath(what), "."]
        command += ["--repo-type", repo_type] if repo_type != "model" else []
        command += [word for pattern in ignore for word in ("--exclude", pattern)]
        advice = f"{what} is whole; later: {shlex.join(command)}"
        return _upload(Path(what), repo_id, repo_type, token, private, ignore, advice)
    with tempfile.TemporaryDirectory() as folder:
        what.save_pretrained(folder)
        license = copy_origin(what, Path(folder))
        model_card(folder, repo_id=repo_id, license=license).save(Path(folder) / CARD_FILE)
        advice = "save it with `save_pretrained` to upload it later with `hf upload`"
        return _upload(Path(folder), repo_id, repo_type, token, private, ignore, advice)


def copy_origin(what: Saveable, folder: Path) -> str | None:
    """Puts what belongs to the weights of `what` beside them in `folder`, if they were loaded from a folder.

    Returns:
        The licence that the card there names.
    """
    name = getattr(getattr(what, "config", None), "_name_or_path", None)
    if not name or not (origin := Path(name)).is_dir():
        return None
    copy_attribution([origin], folder)
    if (settings := origin / SETTINGS_FILE).is_file():
        shutil.copy(settings, folder)
    is_part = (origin.parent / "model_index.json").is_file()  # of a pipeline, whose card stands above it
    card = (origin.parent if is_part else origin) / CARD_FILE
    return (metadata_load(card) or {}).get("license") if card.is_file() else None


def copy_attribution(data: Iterable[str | os.PathLike], folder: str | os.PathLike) -> None:
    """Puts every `ATTRIBUTION.md` of the training data into one in `folder`, which is left as it is if there is none.

    Texts in folders `licences` beside them come along.

    Args:
        data: Training data; the file is looked for in each folder and in the two above it.
        folder: The model's.
    """
    places = [Path(name).absolute() for name in data]
    files = [place / ATTRIBUTION_FILE for path in places for place in (path, *path.parents[:2])]
    files = [file for file in files if file.is_file()]
    for licences in {file.with_name(LICENCES) for file in files}:
        if licences.is_dir():
            shutil.copytree(licences, Path(folder) / LICENCES, dirs_exist_ok=True)
    texts = dict.fromkeys(file.read_text(encoding="utf-8").strip() for file in files)
    if texts:
        (Path(folder) / ATTRIBUTION_FILE).write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def environment(processes: int = 1) -> dict[str, str]:
    """Hardware and versions for a training table: `{"hardware": ..., "versions": ...}`.

    Args:
        processes: Of the run, one accelerator each.
    """
    if torch.cuda.is_available():
        hardware = f"{processes} x {torch.cuda.get_device_name()}"
    else:
        hardware = f"CPU ({platform.machine()}), processes: {processes}, threads each: {torch.get_num_threads()}"
    names = ("torch", "diffusers", "transformers", "accelerate")
    versions = [f"rdtf_diffusers {rdtf_diffusers.__version__}", *(f"{name} {version(name)}" for name in names)]
    return {"hardware": hardware, "versions": ", ".join([*versions, f"Python {platform.python_version()}"])}


def is_hub_id(name: str | os.PathLike) -> bool:
    """Whether a source is "owner/name" on the Hub and not a file or folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", os.fspath(name))) and not Path(name).exists()


def public_name(source: str | os.PathLike) -> str:
    """What may be told of a source: a Hub id as it is, of a path the last name; of `cats/train` both."""
    if is_hub_id(source):
        return os.fspath(source)
    path = Path(source).absolute()
    return f"{path.parent.name}/{path.name}" if path.name in SPLITS else path.name


def escape_markdown(text: str) -> str:
    """Text on one line that neither Markdown nor HTML takes for more than text."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$<>])", r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")


def _cell(value: Any) -> str:
    """A value of the training table without machine paths."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_cell(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, os.PathLike) or (isinstance(value, str) and (os.path.isabs(value) or os.path.exists(value))):
        return public_name(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _data_link(source: str | os.PathLike) -> str:
    """A data set's page on the Hub, or a folder's name."""
    name = escape_markdown(public_name(source))
    return f"[{name}](https://huggingface.co/datasets/{source})" if is_hub_id(source) else name


@dataclass(frozen=True)
class _Saved:
    """What lies in a folder: its class, and of an adapter the repository of its base, as far as that is known."""

    class_name: str
    kind: Literal["pipeline", "model", "adapter"]
    base_models: Sequence[str] = ()


def _saved(folder: Path) -> _Saved:
    """Reads what lies in a folder from the file that names its class."""
    for file, kind in ((folder / "model_index.json", "pipeline"), (folder / "config.json", "model")):
        if file.is_file():
            name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
            if name:
                return _Saved(name, kind)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("peft_type") not in ADAPTERS:
        raise ValueError(f"`folder` must hold a pipeline or a model of diffusers, or an adapter, got {folder}")
    name, base = ADAPTERS[config["peft_type"]], config.get("base_model_name_or_path")
    getattr(baselines, name).config_class.from_pretrained(folder)  # refuses a LoRA of another kind
    return _Saved(name, "adapter", (base,) if base else ())


def _intro(saved: _Saved, base: str) -> str:
    """What it is, in a sentence."""
    if saved.kind == "adapter":
        adapter = getattr(baselines, saved.class_name)
        paper = f"[arXiv {adapter.paper}](https://arxiv.org/abs/{adapter.paper})"
        return f"{adapter.method} ({paper}) for the sticker model `{base}`, tuned with `rdtf_diffusers`."
    parts = {"pipeline": "Animated stickers from words, pictures, or both", "model": "A part of a sticker model"}
    paper = "[arXiv 2503.17735](https://arxiv.org/abs/2503.17735)"
    return f"{parts[saved.kind]}, trained with the method of RDTF ({paper}) and `rdtf_diffusers`."


def _snippet(saved: _Saved, source: str, base: str, prompt: str | None, settings: Mapping[str, Any]) -> str:
    """Python that loads what is saved, and draws a sticker with `settings` if that makes it a pipeline."""
    name = saved.class_name
    module = "rdtf_diffusers" if name in rdtf_diffusers.__all__ else "diffusers"
    if saved.kind == "model":
        return f"from {module} import {name}\n\nmodel = {name}.from_pretrained({source!r})"
    if saved.kind == "adapter":
        start = f"""from rdtf_diffusers import StickerGenerationPipeline, save_sticker
from rdtf_diffusers.baselines import {name}

pipe = StickerGenerationPipeline.from_pretrained({base!r})
{name}.from_pretrained(pipe.unet, {source!r})"""
    else:
        start = f"from {module} import {name}, save_sticker\n\npipe = {name}.from_pretrained({source!r})"
    arguments = "".join(f", {name}={value!r}" for name, value in settings.items())
    return f"""{start}
frames = pipe({(prompt or "a dog jumping")!r}{arguments}).frames[0]
save_sticker(frames, "sticker.webp", fps=8)"""


def fill_card(
    kind: type[Card], card_data: CardData, folder: Path, name: str, table: Mapping[str, Any], **parts: Any
) -> Card:
    """`TEMPLATE` with what both kinds of card have: a title, a table without empty rows, the licences.

    Args:
        kind: `ModelCard` or `DatasetCard`.
        card_data: the head of the card.
        folder: what the card is of; its `ATTRIBUTION_FILE` is linked.
        name: repository id or folder name; the title is its last part.
        table: rows of the card's table; those that are None or empty are left out.
        parts: what else the template shows: `intro`, `snippet`, `note`, `preview` with `preview_text`, and `is_data`
            of a data set, or `losses`, `plots` and `data` of a model.
    """
    return kind.from_template(
        card_data,
        template_str=TEMPLATE,
        title=escape_markdown(name.rpartition("/")[2]),
        table={escape_markdown(k): escape_markdown(_cell(v)) for k, v in table.items() if v not in (None, "", [], {})},
        attribution=ATTRIBUTION_FILE if (folder / ATTRIBUTION_FILE).is_file() else None,
        card_license=card_data.license,
        **parts,
    )


@contextmanager
def _one_line(api: HfApi, repo_id: str, repo_type: RepoType, advice: str) -> Iterator[None]:
    """Whatever goes wrong with the Hub ends in one line with `advice`."""
    if not (api.token or get_token()):
        raise ValueError(f"no token for the Hub: log in with `hf auth login` or set HF_TOKEN; {advice}")
    try:
        yield
    except (OSError, RuntimeError, httpx.HTTPError) as error:  # uploads of large files end in RuntimeErrors
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
            reason = f"the token is not valid or may not write there ({cause.response.status_code})"
        else:
            reason = " ".join(str(cause).split()) or type(cause).__name__
        place = f"{api.endpoint}/{REPO_TYPES_URL_PREFIXES.get(repo_type, '')}{repo_id}"
        raise OSError(f"could not upload to {place}: {reason}; {advice}") from error


def make_repository(
    repo_id: str, *, repo_type: RepoType = "model", token: str | None = None, private: bool | None = None
) -> str:
    """Makes an empty repository, if it is not there, so that a long run need not fear its last line.

    Args:
        repo_id, repo_type, token, private: as for `push_to_hub`.

    Returns:
        "owner/name".

    Raises:
        ValueError, OSError: as for `push_to_hub`.
    """
    api = HfApi(token=token)
    with _one_line(api, repo_id, repo_type, "nothing was done"):
        return api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id


def _upload(
    folder: Path,
    repo_id: str,
    repo_type: RepoType,
    token: str | None,
    private: bool | None,
    ignore: Sequence[str],
    advice: str,
) -> str:
    """Makes the repository and commits the folder."""
    api = HfApi(token=token)
    with _one_line(api, repo_id, repo_type, advice):
        repository = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, repo_type=repo_type, folder_path=folder, ignore_patterns=list(ignore)
        )
    return str(repository)
