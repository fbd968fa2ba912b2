"""Prepared data: latents and text embeddings in Parquet shards, written once and read without autoencoder or encoders.

A prepared folder holds `preparation.json` (`Preparation`: all that decides its content), `padding.safetensors` (the
latent of a padded frame) and `shards/00000.parquet`, .... Shard s holds what was kept of the source rows
s * rows_per_shard to (s + 1) * rows_per_shard - 1, so any number of processes can write shards side by side, and a
shard that exists is whole. A shard's row is a source row with all clips that were made of it.
"""

import hashlib
import io
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save
from torch.utils.data import Dataset

from ..utils.files import write_whole
from .dataset import draw_rows, sample_generator


PREPARATION_FILE = "preparation.json"
PADDING_FILE = "padding.safetensors"
COMPRESSION = {"clips.list.element.text": "zstd", "clips.list.element.text_2": "zstd"}
DROPPED_KEY = b"rdtf_diffusers.dropped"
ROWS_PER_GROUP = 32

# fp16 arrays are stored as bytes in C order; their shapes follow from preparation.json and the number of bytes.
CLIP = pa.struct(
    {
        "caption": pa.string(),  # as it was before words were dropped
        "latents": pa.binary(),  # (frames, c, h, w)
        "keyframes": pa.list_(pa.list_(pa.int16())),  # of an animation, for each k from min_keyframes: k frames
        "text": pa.binary(),  # (text_variants, tokens, width), null without text embeddings
        "text_2": pa.binary(),  # the same of a second text encoder
    }
)
SCHEMA = pa.schema({"row": pa.int64(), "file": pa.string(), "clips": pa.list_(CLIP)})


@dataclass(frozen=True)
class Preparation:
    """What decides the content of prepared data; stored beside it and compared before anything is added or used.

    Attributes:
        sources: the data sets' names, in the order of their rows.
        num_rows: rows of all sources together, good and bad.
        rows: fingerprints of the sources, see `fingerprint_rows`.
        rows_per_shard: source rows that a shard stands for.
        resolution, num_frames, min_keyframes, max_keyframes: as for training clips.
        keyframes, keyframe_features, center_crop, image_interpolation_mode: likewise.
        motions_per_picture: procedural clips of each still picture.
        text_variants: embeddings of each caption, with other words dropped; 0 leaves text to the trainer.
        text_word_drop_prob: probability that a word is dropped.
        filters: limits on files, by name.
        seed: of motions and dropped words.
        latent_shape: (c, h, w) of a frame.
        text_shape, text_2_shape: (tokens, width) of a caption's embeddings; None where there are none.
        vae, text_encoder, text_encoder_2: fingerprints of the weights, see `fingerprint`.
        mixed_precision: in which the autoencoder and the text encoders ran: "no", "fp16" or "bf16".
        motion_weights: factors on how often each motion is drawn, by name.
    """

    sources: tuple[str, ...]
    num_rows: int
    rows: tuple[str, ...]
    rows_per_shard: int
    resolution: int
    num_frames: int
    min_keyframes: int
    max_keyframes: int
    keyframes: str
    keyframe_features: str
    center_crop: bool
    image_interpolation_mode: str
    motions_per_picture: int
    text_variants: int
    text_word_drop_prob: float
    filters: dict[str, float | None]
    seed: int
    latent_shape: tuple[int, int, int]
    text_shape: tuple[int, int] | None
    text_2_shape: tuple[int, int] | None
    vae: str
    text_encoder: str
    text_encoder_2: str | None
    mixed_precision: str
    motion_weights: dict[str, float] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    def rows_of_shard(self, shard: int) -> range:
        """The source rows that a shard stands for."""
        return range(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.num_rows))

    def save(self, folder: str | os.PathLike) -> None:
        """Write `preparation.json`, or check that what stands there is the same.

        Raises:
            ValueError: the folder was prepared in another way; the differences are named.
        """
        file = Path(folder) / PREPARATION_FILE
        if file.is_file():
            other = asdict(Preparation.load(folder))
            differences = [f"{k}: {other[k]!r}, now {v!r}" for k, v in asdict(self).items() if v != other[k]]
            if differences:
                raise ValueError(f"{folder} was prepared otherwise ({'; '.join(differences)}); use another folder.")
            return
        write_whole(file, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Preparation":
        """Read `preparation.json`.

        Raises:
            ValueError: there is none, or it is not one of this version.
        """
        file = Path(folder) / PREPARATION_FILE
        if not file.is_file():
            raise ValueError(f"{folder}: no prepared data, there is no {PREPARATION_FILE}.")
        values = json.loads(file.read_text(encoding="utf-8"))
        values = {"motion_weights": {}} | values  # what was prepared before there were any
        names = {entry.name for entry in fields(cls)}
        if set(values) != names:
            raise ValueError(f"{file}: written by another version; it lacks or adds {sorted(names ^ set(values))}.")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def fingerprint(model: torch.nn.Module) -> str:
    """Tells weights apart: the first 16 hexadecimal digits of the SHA-256 of names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def shard_path(folder: str | os.PathLike, shard: int) -> Path:
    """Where a shard stands in a prepared folder."""
    return Path(folder) / "shards" / f"{shard:05d}.parquet"


def write_shard(folder: str | os.PathLike, shard: int, rows: Sequence[dict], dropped: Sequence[dict]) -> None:
    """Write a shard, whole or not at all.

    Args:
        rows: as `SCHEMA`.
        dropped: `{"row": int, "file": str, "reason": str}` of the source rows that are left out.
    """
    file = shard_path(folder, shard)
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({DROPPED_KEY: json.dumps(list(dropped))})
    stream = io.BytesIO()
    # Latents hardly compress. Texts do where the padding of short ones is the same token after token.
    pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP, compression=COMPRESSION, use_dictionary=False)
    write_whole(file, stream.getbuffer())


def read_dropped(folder: str | os.PathLike, shard: int) -> list[dict]:
    """What `write_shard` was told of dropped rows."""
    return json.loads(pq.read_schema(shard_path(folder, shard)).metadata[DROPPED_KEY])


def save_padding(folder: str | os.PathLike, latent: torch.Tensor) -> None:
    """Write the latent (c, h, w) of a padded frame: zeros in [-1, 1] pixels, through the autoencoder."""
    write_whole(Path(folder) / PADDING_FILE, save({"padding": latent.half().contiguous()}))


def to_bytes(array: torch.Tensor) -> bytes:
    """A tensor as fp16 in C order."""
    return array.detach().to("cpu", torch.float16).contiguous().numpy().tobytes()


def _from_bytes(data: pa.BinaryScalar, shape: tuple[int, ...], index: int | slice | np.ndarray) -> torch.Tensor:
    """Some rows of an array (n, *shape) that `to_bytes` wrote, as float32; the others are not copied."""
    array = np.frombuffer(data.as_buffer(), dtype=np.float16).reshape(-1, *shape)
    return torch.from_numpy(array[index].astype(np.float32))


class LatentClips(Dataset):
    """An endless, shuffled stream of prepared training clips, addressed by sample number like `StickerClips`.

        clips = LatentClips("prepared")
        clips[0]  # {"latents": (n, c, h, w), "caption": str, "encoder_hidden_states": (S, D), "index", "seed"}

    Every source row comes once in `len(clips)` samples: an animation with k of its frames, a picture still or in
    motion. Rows are read in groups as they stand in the shards. Groups are shuffled, and the rows of as many groups as
    fit into memory among each other; where all do, the order is that of `StickerClips`.

    Args:
        folder: prepared data.
        procedural_fraction: share of still pictures of which a clip in motion is taken.
        min_keyframes, max_keyframes: bounds, both included, of the frames taken from an animation, within those that
            were prepared; those by default.
        seed: of the whole stream.
        cache_bytes: memory for groups of rows, in every process and every DataLoader worker.
        max_samples: use this many rows, drawn from the seed; all by default.

    Raises:
        ValueError: no prepared data, missing shards, keyframes outside of what was prepared, no row left, or
            `max_samples` below 1.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        procedural_fraction: float = 0.5,
        min_keyframes: int | None = None,
        max_keyframes: int | None = None,
        seed: int = 0,
        cache_bytes: int = 2**30,
        max_samples: int | None = None,
    ):
        self.preparation = made = Preparation.load(folder)
        self.min_keyframes = made.min_keyframes if min_keyframes is None else min_keyframes
        self.max_keyframes = made.max_keyframes if max_keyframes is None else max_keyframes
        if not made.min_keyframes <= self.min_keyframes <= self.max_keyframes <= made.max_keyframes:
            raise ValueError(
                f"{folder} was prepared for {made.min_keyframes} to {made.max_keyframes} keyframes, not for "
                f"{self.min_keyframes} to {self.max_keyframes}."
            )
        self.files = [shard_path(folder, shard) for shard in range(made.num_shards)]
        if procedural_fraction and not made.motions_per_picture:
            raise ValueError(
                f"{folder} was prepared without motions; `procedural_fraction` must be 0, not {procedural_fraction}."
            )
        missing = [file.name for file in self.files if not file.is_file()]
        if missing:
            raise ValueError(f"{folder}: {len(missing)} of {len(self.files)} shards are missing, {missing[0]} first.")
        self.padding = load_file(Path(folder) / PADDING_FILE)["padding"].float()  # (c, h, w)
        groups = [(file, *group) for file in range(len(self.files)) for group in self._groups(file)]
        if not groups:
            raise ValueError(f"{folder}: no row was kept.")
        self.groups = [group[:2] for group in groups]
        sizes = np.array([rows for _, _, rows, _ in groups])
        used = draw_rows(int(sizes.sum()), max_samples, seed)
        group = np.repeat(np.arange(len(groups)), sizes)[used]
        places = np.stack([group, used - (np.cumsum(sizes) - sizes)[group]], axis=1)  # (n, 2): group, row in it
        self.places, self.length = np.split(places, np.flatnonzero(np.diff(group)) + 1), len(used)
        self.window = max(cache_bytes // max(size for *_, size in groups), 1)  # groups that are kept and mixed
        self.procedural_fraction, self.seed = procedural_fraction, seed
        self.epoch, self.order = -1, np.empty((0, 2), dtype=int)
        self.tables: OrderedDict[int, pa.Table] = OrderedDict()

    def _groups(self, file: int) -> Iterator[tuple[int, int, int]]:
        """Number, rows and bytes of each group of rows in a shard."""
        try:
            metadata = pq.read_metadata(self.files[file])
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.files[file]}: a broken shard; delete it and prepare again: {error}") from error
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_rows:
                yield number, group.num_rows, group.total_byte_size

    def __len__(self) -> int:
        return self.length

    def place(self, sample: int) -> tuple[int, int]:
        """Group, and row in it, of a sample."""
        epoch, position = divmod(sample, len(self))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self._shuffled(epoch)
        return tuple(self.order[position])

    def _shuffled(self, epoch: int) -> np.ndarray:
        """(rows, 2): group, and row in it, of every position of an epoch."""
        rng, places = np.random.default_rng([self.seed, epoch]), self.places
        if len(places) > self.window:
            places = [places[group] for group in rng.permutation(len(places))]
        windows = [np.concatenate(places[i : i + self.window]) for i in range(0, len(places), self.window)]
        return np.concatenate([window[rng.permutation(len(window))] for window in windows])

    def read_group(self, group: int) -> pa.Table:
        """A group of rows; those read last are kept."""
        if group not in self.tables:
            file, number = self.groups[group]
            self.tables[group] = pq.ParquetFile(self.files[file]).read_row_group(number)
            if len(self.tables) > self.window:
                self.tables.popitem(last=False)
        self.tables.move_to_end(group)
        return self.tables[group]

    def __getitem__(self, sample: int) -> dict[str, Any]:
        group, number = self.place(sample)
        row = self.read_group(group).slice(number, 1)
        clips = row["clips"][0].values  # a struct array of the row's clips
        return self.draw(clips, sample_generator(self.seed, sample)) | {"index": row["row"][0].as_py()}

    def draw(self, clips: pa.StructArray, rng: np.random.Generator) -> dict[str, Any]:
        """Draw one sample of a source row's clips, in the order of draws of `ClipMaker.sample`."""
        made, seed = self.preparation, int(rng.integers(2**63))
        number, frames = 0, np.zeros(1, dtype=int)
        keyframes = clips.field("keyframes")
        if len(keyframes[0]):
            k = int(rng.integers(self.min_keyframes, self.max_keyframes + 1))
            frames = np.asarray(keyframes[0][k - made.min_keyframes].as_py())
        elif len(clips) > 1 and rng.random() < self.procedural_fraction:
            number = int(rng.integers(1, len(clips)))
            frames = np.arange(made.num_frames)
        clip: Mapping[str, Any] = clips[number]
        sample = {"latents": _from_bytes(clip["latents"], made.latent_shape, frames)}
        sample |= {"caption": clip["caption"].as_py(), "seed": seed}
        if made.text_variants:
            variant = int(rng.integers(made.text_variants))
            sample["encoder_hidden_states"] = _from_bytes(clip["text"], made.text_shape, variant)
            if made.text_2_shape:
                sample["encoder_hidden_states_2"] = _from_bytes(clip["text_2"], made.text_2_shape, variant)
        return sample
