"""Cards of data sets for the Hub: what is in a folder of stickers or of prepared data, and how to load it.

```python
dataset_card("stickers", repo_id="me/stickers").save("stickers/README.md")
```
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData

from ..utils.hub import SPLITS, escape_markdown, fill_card, public_name
from .latents import PREPARATION_FILE, LatentClips
from .report import check
from .rows import METADATA_FILES, check_files, load_rows


# What `datasets` takes for pictures; it neither downloads nor decodes other files that `load_rows` reads.
PICTURES = (".webp", ".gif", ".png", ".apng", ".jpg", ".jpeg")
SAMPLE = 200  # files of a data set's split that are read for its card
SHOWN = (  # lines of the data report
    *("stills", "animations", "frames of an animation", "duration", "size", "transparency", "captions", "no caption"),
    "bad files",
)

Parts = tuple[list[dict], dict[str, Any], dict[str, Any]]  # of a data set: `configs`, the card's table, the rest


def dataset_card(folder: str | os.PathLike, *, repo_id: str | None = None, license: str | None = None) -> DatasetCard:
    """The README of a data set; `card.save(folder / "README.md")` writes it.

    It says what is there, in which columns, and how to load it, and tells the Hub which files belong to which split,
    so that a sticker called `steam-train.webp` is not taken for one. Of each split 200 stickers, evenly spread, are
    read for frames, times and sizes.

    Args:
        folder: Stickers with `metadata.jsonl`, `.csv` or `.parquet`, here or in `train`, `validation` and `test`; or
            what `examples/prepare_dataset.py` left.
        repo_id: Where it will be published, for the example; by default the folder's name stands there.
        license: Of the data set, as the Hub spells it ("cc-by-4.0").

    Raises:
        ValueError: The folder holds neither; no sticker can be read; or others could not load it by its id, because
            metadata or files are such as `datasets.load_dataset` does not read.
    """
    folder = Path(folder)
    name = repo_id or folder.absolute().name
    is_prepared = (folder / PREPARATION_FILE).is_file()
    configs, table, parts = (_prepared_parts if is_prepared else _sticker_parts)(folder, name)
    card_data = DatasetCardData(
        license=license,
        task_categories=["image-to-video", "text-to-video"],
        tags=["stickers", "animation", "latents" if is_prepared else "image", "rdtf"],
        configs=configs,
    )
    return fill_card(DatasetCard, card_data, folder, name, table, is_data=True, **parts)


def _sticker_parts(folder: Path, name: str) -> Parts:
    """What the card of a folder of stickers says."""
    metadata = _metadata_files(folder)
    columns = _columns(metadata)
    splits = {split: load_rows(file.parent) for split, file in metadata.items()}
    suffixes = sorted({Path(image["path"]).suffix for rows in splits.values() for image in rows["image"]})
    if others := [suffix for suffix in suffixes if suffix.lower() not in PICTURES]:
        raise ValueError(f"{folder}: `load_dataset` reads {', '.join(PICTURES)}, not {', '.join(others)}")
    sizes = {split: len(rows) for split, rows in splits.items()}
    spread = {split: np.linspace(0, size - 1, min(size, SAMPLE)).round() for split, size in sizes.items()}
    sample = [rows[int(place)] for split, rows in splits.items() for place in spread[split]]
    check_files(sample)
    total = sum(sizes.values())
    table = {
        "rows": total if len(sizes) == 1 else sizes,
        "files read for what follows": len(sample) if len(sample) < total else None,
        **_measured(name, sample),
        "columns": ", ".join(columns),
    }
    places = {split: file.relative_to(folder) for split, file in metadata.items()}
    paths = {
        split: [file.as_posix(), *((file.parent / "**" / f"*{suffix}").as_posix() for suffix in suffixes)]
        for split, file in places.items()
    }
    split = "" if "train" in splits else f", split={next(iter(splits))!r}"
    parts = {
        "intro": f"{total:,} stickers with captions, for training and measuring models that animate stickers.",
        "preview": quote(Path(sample[0]["image"]["path"]).relative_to(folder).as_posix()),
        "preview_text": escape_markdown(sample[0]["text"]),
        "snippet": f"""from rdtf_diffusers.data.rows import load_rows, read_row

rows = load_rows({name!r}{split})
animation = read_row(rows[0])  # frames (N, H, W, 4), straight RGBA; durations in milliseconds
print(rows[0]["text"], animation.frames.shape, animation.durations)""",
        "note": "`examples/train_rdtf.py --dataset_name` takes this data set by its id.",
    }
    data_files = [{"split": split, "path": path} for split, path in paths.items()]
    return [{"config_name": "default", "data_files": data_files}], table, parts


def _measured(name: str, sample: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Lines of the data report that hold for a sample, too, and how many frames animations have."""
    report = check(name, sample)
    frames = report.records["num_frames"]
    moving = frames[frames > 1]
    count = f"{moving.min()} to {moving.max()}, median {np.median(moving):.0f}" if len(moving) else None
    lines = dict(report.lines()) | {"frames of an animation": count}
    return {what: lines.get(what) for what in SHOWN}


def _metadata_files(folder: Path) -> dict[str, Path]:
    """The metadata of each split; what has none is all "train"."""
    for places in ({"train": folder}, {split: folder / split for split in SPLITS}):
        files = {split: [place / name for name in METADATA_FILES] for split, place in places.items()}
        found = {split: next(filter(Path.is_file, names), None) for split, names in files.items()}
        if any(found.values()):
            return {split: file for split, file in found.items() if file}
    raise ValueError(
        f"`folder` must hold {METADATA_FILES[0]}, itself or in {', '.join(SPLITS)}, or prepared data, got {folder}"
    )


def _columns(metadata: Mapping[str, Path]) -> list[str]:
    """The columns of all splits, if `load_dataset` can read them: each of one type, and the same everywhere."""
    import pyarrow
    from pyarrow import csv, json, parquet

    readers = {".jsonl": json.read_json, ".csv": csv.read_csv, ".parquet": parquet.read_table}
    schemas = {}
    for split, file in metadata.items():
        try:
            schemas[split] = readers[file.suffix](file).schema
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file}: `load_dataset` reads only columns of one type: {error}") from error
    (first, schema), *others = schemas.items()
    for split, other in others:
        if different := sorted({field.name for field in {*schema} ^ {*other}}):
            raise ValueError(f"`load_dataset` needs {first} and {split} to have equal columns, not {different}")
    if "file_name" not in schema.names:
        raise ValueError(f"{metadata[first]}: `load_dataset` needs a column `file_name`, got {schema.names}")
    return schema.names


def _prepared_parts(folder: Path, name: str) -> Parts:
    """What the card of prepared data says."""
    clips = LatentClips(folder, procedural_fraction=0)
    made = clips.preparation
    table = {
        "rows": f"{len(clips):,} of {made.num_rows:,} stickers; dropped.jsonl says why not the others",
        "made from": [public_name(source) for source in made.sources],
        "pixels": f"{made.resolution} x {made.resolution}",
        "latents": f"float16 bytes, {made.latent_shape} for each frame",
        "keyframes": f"{made.min_keyframes} to {made.max_keyframes} of an animation, {made.keyframes}",
        "clips in motion of a still": f"{made.motions_per_picture}, of {made.num_frames} frames",
        "weights of motions": ", ".join(f"{name} {weight:g}" for name, weight in made.motion_weights.items()),
        "text": made.text_shape and f"float16 bytes, {made.text_shape} for each of {made.text_variants} variants",
        "second text": made.text_2_shape and f"float16 bytes, {made.text_2_shape} likewise",
        "autoencoder": made.vae,
        "text encoders": [name for name in (made.text_encoder, made.text_encoder_2) if name],
        "mixed precision": made.mixed_precision,
    }
    still = "" if made.motions_per_picture else ", procedural_fraction=0"
    parts = {
        "intro": "Latents and text embeddings of stickers, worked out once so that training need not work them out "
        "again. They show the stickers that they were made from, whose licences hold for them, too.",
        "snippet": f"""from huggingface_hub import snapshot_download
from rdtf_diffusers.data.latents import LatentClips

clips = LatentClips(snapshot_download({name!r}, repo_type="dataset"){still})
print(len(clips), clips[0]["caption"], clips[0]["latents"].shape)""",
        "note": "`examples/train_rdtf.py --latent_cache` takes the folder, for models with this autoencoder and these "
        "text encoders, which are told by fingerprints of their weights. preparation.json has all settings.",
    }
    return [{"config_name": "default", "data_files": "shards/*.parquet"}], table, parts
