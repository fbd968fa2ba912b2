"""From a folder, a JSONL file, tar files or a Hub id to rows: which file, which words.

```python
rows = load_rows("stickers")                     # captions and places of files; nothing is decoded yet
animation = read_row(rows[0])                    # every frame, with its timing
rows = load_rows("user/stickers", streaming=True)  # rows one after the other, nothing downloaded beforehand
```
"""

import hashlib
import itertools
import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .animation import MAX_BYTES, Animation, AnimationError, read_animation


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from pyarrow import ChunkedArray

logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SUFFIXES = (".webp", ".gif", ".png", ".apng", ".jpg", ".jpeg", ".webm", ".mp4", ".mov", ".tgs")
# Where columns are looked for, in this order, if none is named. The last names are those of VSD2M.
FILE_COLUMNS = ("file_name", "visual_path")
IMAGE_COLUMNS = ("image", "animation", "video", *(suffix[1:] for suffix in SUFFIXES))
CAPTION_COLUMNS = ("text", "caption", "txt", "eng_cap", "llava_wx_chn_cap", "meanings")
BATCH = 50_000  # rows that are Python objects at a time


def load_rows(
    data: str | os.PathLike,
    caption_column: str | None = None,
    image_column: str | None = None,
    split: str = "train",
    streaming: bool = False,
    config_name: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> "Dataset | IterableDataset":
    """Rows of a data set, files not yet read.

    Args:
        data: one of
            - a folder with `metadata.jsonl`, `.csv` or `.parquet` whose rows have `file_name`, the ImageFolder layout
              of HF datasets; the same in a subfolder named like the split;
            - a JSONL file whose lines have `file_name` or, as VSD2M's, `visual_path`, relative to the file;
            - a tar file, or a folder of them, in WebDataset layout: `cat.gif` beside `cat.txt` or `cat.json`;
            - a folder of stickers without metadata: `cat.gif`, its caption in `cat.txt`, if there is one;
            - anything else that `datasets.load_dataset` takes: a Hub id, a folder of Parquet files.
        caption_column: the column with the captions; by default the first of `CAPTION_COLUMNS` that is there.
        image_column: the column with the files of a Hub data set; by default the first of `IMAGE_COLUMNS`.
        split: the split, for data sets that have several and for folders that have it as a subfolder.
        streaming: read a Hub data set while it downloads. Local files are listed in any case.
        config_name: the configuration of a Hub data set that has several.
        cache_dir: where `datasets` keeps what it downloads or converts; stickers in local folders and tar files are
            read where they are.

    Returns:
        Rows `{"image": {"path": str | None, "bytes": bytes | None}, "text": str}`. Optional columns are kept where the
        data has them: `keyframes` (from VSD2M's `keyframe_idx`), frame numbers, and `ocr`, the words in the picture.
        A row of a tar file has `span`, [first byte, number of bytes] in the file at `path`, and `name`.

    Raises:
        ValueError: no such data set, a broken metadata line, no rows, no such column (the columns are listed), or a
            `config_name` for local files.
    """
    rows = _rows_of_files(data, caption_column, split)
    if rows is None:
        return _rows_of_hub(os.fspath(data), caption_column, image_column, split, streaming, config_name, cache_dir)
    if config_name is not None:
        raise ValueError(f"{data}: local files have no configurations; leave out `config_name` {config_name!r}.")
    return rows


def _rows_of_files(data: str | os.PathLike, caption_column: str | None, split: str) -> "Dataset | None":
    """Rows of one of the local layouts; None if it is none of them."""
    path = Path(data)
    metadata = next((file for file in _metadata_places(path, split) if file.is_file()), None)
    if metadata is not None:
        return _rows_of_metadata(metadata, caption_column)
    files = sorted(file for file in path.rglob("*") if _is_sticker(file.name)) if path.is_dir() else []
    tars = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))
    if tars and files:
        raise ValueError(f"{data}: stickers in tar files and beside them; keep them in two folders.")
    if tars:
        return _rows_of_tars(tars, caption_column, data)
    if not files:
        return None
    captioned = sorted({os.fspath(file.parent) for name in METADATA_FILES for file in path.rglob(name)})
    if captioned:
        raise ValueError(f"{data}: the captions are further down; give {' '.join(captioned)}.")
    return _dataset(({"path": os.fspath(file), "text": _sidecar(file)} for file in files), data)


def _metadata_places(path: Path, split: str) -> Iterator[Path]:
    if path.suffix == ".jsonl":
        yield path
    for folder in (path, path / split):
        yield from (folder / name for name in METADATA_FILES)


def _is_sticker(name: str) -> bool:
    """Whether a file is one by its name; macOS leaves files such as `._cat.gif` that are none."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _dataset(rows: Iterable[dict], data: str | os.PathLike) -> "Dataset":
    """Rows given by path, text and optional columns, in Arrow's memory: a fraction of what Python's objects take."""
    from datasets import Dataset, Features, Image, List, Value, concatenate_datasets

    optional = {"span": List(Value("int64")), "name": Value("string"), "ocr": Value("string")}
    optional["keyframes"] = List(Value("int32"))
    features = Features({"image": Image(decode=False), "text": Value("string")} | optional)
    rows, batches = iter(rows), []
    while batch := list(itertools.islice(rows, BATCH)):
        for row in batch:
            _check_name(row["path"])
        columns = {name: [row.get(name) for row in batch] for name in features if name != "image"}
        columns["image"] = [{"path": row["path"], "bytes": None} for row in batch]
        batches.append(Dataset.from_dict(columns, features=features))
    if not batches:
        raise ValueError(f"{data}: the data set has no rows.")
    dataset = concatenate_datasets(batches)
    return dataset.remove_columns([name for name in optional if dataset.data.column(name).null_count == len(dataset)])


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path!r}: the file's name is not UTF-8; rename it.") from error


def _find_column(columns: Iterable[str], wanted: str | None, usual: tuple[str, ...], source: object) -> str:
    found = next((name for name in (usual if wanted is None else (wanted,)) if name in columns), None)
    if found is None:
        raise ValueError(f"{source}: no column `{wanted or usual[0]}`; the columns are {', '.join(columns)}.")
    return found


def _caption(value: Any, place: str) -> str:
    """Text, the first of several texts, or nothing."""
    value = value[0] if isinstance(value, list) and value else value
    if value is not None and value != [] and not isinstance(value, str):
        raise ValueError(f"{place}: the caption must be text, got {value!r:.40}.")
    return value or ""


def _read_metadata(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place for messages, row). JSON lines may have columns whose type changes from line to line."""
    if file.suffix == ".jsonl":
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise ValueError(f"{file}, line {number}: not JSON: {error}.") from error
                    yield f"{file}, line {number}", row
        return
    import pandas

    if file.suffix == ".csv":
        table = pandas.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    else:
        table = pandas.read_parquet(file)
    for number, row in enumerate(table.to_dict("records"), start=1):
        yield f"{file}, row {number}", {name: v.tolist() if hasattr(v, "tolist") else v for name, v in row.items()}


def _rows_of_metadata(file: Path, caption_column: str | None) -> "Dataset":
    # Not by load_dataset("imagefolder"): it refuses a column that is a number in one line and a list in another.
    def rows() -> Iterator[dict]:
        for place, row in _read_metadata(file):
            name = next((row[c] for c in FILE_COLUMNS if row.get(c)), None) if isinstance(row, dict) else None
            if not isinstance(name, str):
                raise ValueError(f"{place}: not an object with `file_name`.")
            text = _caption(row[_find_column(row, caption_column, CAPTION_COLUMNS, place)], place)
            ocr = row.get("ocr")
            yield {
                "path": os.fspath(file.parent / name),
                "text": text,
                "ocr": ocr if isinstance(ocr, str) and ocr else None,
                "keyframes": _keyframes(row.get("keyframes") or row.get("keyframe_idx"), place),
            }

    try:
        return _dataset(rows(), file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8: {error}.") from error
    except ValueError as error:  # also what pandas finds wrong with a file that it does not name
        raise error if str(file) in str(error) else ValueError(f"{file}: {error}") from error


def _keyframes(value: Any, place: str) -> list[int] | None:
    try:
        value = json.loads(value) if isinstance(value, str) else value  # CSV has no lists
    except json.JSONDecodeError:
        value = 0
    if value is not None and not (isinstance(value, list) and all(isinstance(index, int) for index in value)):
        raise ValueError(f"{place}: `keyframes` must be a list of whole numbers.")
    return value


def _sidecar(file: Path) -> str:
    caption = file.with_suffix(".txt")
    return caption.read_text(encoding="utf-8-sig", errors="replace").strip() if caption.is_file() else ""


def _rows_of_tars(tars: list[Path], caption_column: str | None, data: str | os.PathLike) -> "Dataset":
    # Not by load_dataset("webdataset"): it refuses GIF beside WebP. The files stay in the tar and are read in place,
    # so it must not be compressed.
    def rows() -> Iterator[dict]:
        for tar in tars:
            try:
                with tarfile.open(tar, "r:") as archive:
                    yield from _members(tar, archive, caption_column)
            except (OSError, tarfile.TarError, EOFError) as error:
                raise ValueError(f"{tar}: not an uncompressed tar file, or a broken one: {error}") from error

    return _dataset(rows(), data)


def _members(tar: Path, archive: tarfile.TarFile, caption_column: str | None) -> Iterator[dict]:
    media: dict[str, tuple[str, dict]] = {}  # by name; files that differ in their endings alone share a caption
    captions: dict[str, str] = {}
    for member in archive:
        path = PurePosixPath(member.name)
        key, ending = os.fspath(path.with_suffix("")), path.suffix.lower()
        if not member.isfile() or path.name.startswith("."):
            continue
        if _is_sticker(path.name):
            place = {"path": os.fspath(tar), "span": [member.offset_data, member.size], "name": member.name}
            media[member.name] = (key, place)
        elif ending == ".txt":
            captions[key] = archive.extractfile(member).read().decode("utf-8-sig", errors="replace").strip()
        elif ending == ".json":
            place = f"{tar}/{member.name}"
            try:
                row = json.load(archive.extractfile(member))
            except ValueError as error:
                raise ValueError(f"{place}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place}: not an object.")
            captions[key] = _caption(row[_find_column(row, caption_column, CAPTION_COLUMNS, place)], place)
    yield from (row | {"text": captions.get(key, "")} for key, row in media.values())


def _rows_of_hub(
    data: str,
    caption_column: str | None,
    image_column: str | None,
    split: str,
    streaming: bool,
    config_name: str | None,
    cache_dir: str | os.PathLike | None,
) -> "Dataset | IterableDataset":
    from datasets import Features, Image, List, Value, load_dataset

    try:
        dataset = load_dataset(data, config_name, split=split, streaming=streaming, cache_dir=cache_dir)
    except Exception as error:  # datasets raises many kinds, none of them common to all
        raise ValueError(
            f"{data}: neither a folder with {METADATA_FILES[0]} or stickers, nor a data set that loads: {error}"
        ) from error
    if streaming and dataset.features:  # files on the Hub are decoded in threads, whatever a cast says later
        dataset = dataset.decode(False)
    columns = dataset.column_names
    if columns is None:  # a stream whose columns are known from its first row only
        columns = list(next(iter(dataset), {}))
    image = _find_column(columns, image_column, IMAGE_COLUMNS, data)
    caption = _find_column(columns, caption_column, CAPTION_COLUMNS, data)
    if isinstance((dataset.features or {}).get(image), List):
        raise ValueError(f"{data}: `{image}` holds several files a row; one is needed.")
    kept = [name for name in ("keyframes", "keyframe_idx", "ocr") if name in columns]
    dataset = dataset.select_columns([image, caption, *kept])
    # Undecoded: one bad file is named and skipped instead of ending an epoch, and no animation becomes one picture.
    dataset = dataset.cast_column(image, Image(decode=False))
    names = {image: "image", caption: "text", "keyframe_idx": "keyframes"}
    names = {old: new for old, new in names.items() if old in (image, caption, *kept) and old != new}
    dataset = dataset.rename_columns(names) if names else dataset
    if streaming:
        features = dataset.features and Features({**dataset.features, "text": Value("string")})
        return dataset.map(lambda row: {"text": _caption(row["text"], data)}, features=features)
    if len(dataset) == 0:
        raise ValueError(f"{data}: the data set has no rows.")
    if dataset.features["text"] != Value("string") or dataset.data.column("text").null_count:
        # Not by map, which would write all pictures anew.
        captions = [_caption(value, data) for value in dataset["text"]]
        dataset = dataset.remove_columns("text").add_column("text", captions)
    return dataset


def row_name(row: Mapping[str, Any]) -> str:
    """What a row's file is called in messages."""
    image = row["image"] or {}
    if row.get("span"):
        return f"{image['path']}/{row['name']}"
    return image.get("path") or f"a file of {len(image.get('bytes') or b'')} bytes"


def read_row(row: Mapping[str, Any]) -> Animation:
    """Decode one row of `load_rows`; raises AnimationError that names the file."""
    image = row["image"] or {}
    if row.get("span"):
        first, length = row["span"]
        try:
            with open(image["path"], "rb") as file:
                file.seek(first)
                return read_animation(file.read(min(length, MAX_BYTES + 1)), source=row_name(row))
        except OSError as error:
            raise AnimationError(f"{row_name(row)}: {error.strerror}") from error
    if image.get("bytes") is not None:
        return read_animation(image["bytes"], source=row_name(row))
    if image.get("path") is None:
        raise AnimationError("A row of the data set has no file.")
    if image["path"].startswith("hf://"):  # of a stream
        return read_animation(_remote_bytes(image["path"]), source=image["path"])
    return read_animation(image["path"])


def _remote_bytes(path: str) -> bytes:
    """A file on the Hub, as far as `read_animation` takes files.

    Raises:
        AnimationError: it cannot be had.
    """
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AnimationError(f"{path}: {error}") from error


def check_captions(columns: Iterable["ChunkedArray"]) -> None:
    """Refuses data without any caption. Arrow compares, so that millions of rows take a fraction of a second.

    Args:
        columns: the texts of each data set; of a `Dataset` they are `rows.data.column("text")`.

    Raises:
        ValueError: not a single text has more than blanks.
    """
    import pyarrow.compute as pc

    if not any(pc.any(pc.not_equal(pc.utf8_trim_whitespace(column), "")).as_py() for column in columns):
        raise ValueError("No sticker has a caption; if they stand in another column, name it with --caption_column.")


def check_files(rows: Iterable[Mapping[str, Any]]) -> None:
    """Refuses data if none of these rows can be read; stops at the first that can.

    Raises:
        ValueError: names the last of the files.
    """
    reasons = []
    for row in rows:
        try:
            read_row(row)
        except AnimationError as error:
            reasons.append(error)
        else:
            return
    raise ValueError(f"No file of the data set can be read, {len(reasons)} were tried; the last: {reasons[-1]}")


def fingerprint_rows(rows: "Dataset") -> str:
    """Tells data sets apart by their captions, names of files and keyframes; files are not read."""
    digest = hashlib.sha256()
    for row in rows.select_columns([name for name in rows.column_names if name != "image"]):
        digest.update(json.dumps(row, sort_keys=True).encode())
    for chunk in rows.data.column("image").chunks:
        for path in chunk.field("path"):
            digest.update(PurePosixPath(path.as_py() or "").name.encode() + b"\0")
    return digest.hexdigest()[:16]


def iterate_animations(rows: Iterable[Mapping[str, Any]]) -> Iterator[Animation]:
    """Decode every row in order; a bad file is named in a warning and skipped."""
    for row in rows:
        try:
            yield read_row(row)
        except AnimationError as error:
            logger.warning("Skipped: %s", error)
