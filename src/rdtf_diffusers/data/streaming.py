"""Training clips from data that is not there yet: read while it arrives, resumed exactly.

```python
stream = StreamedClips(["user/stickers"], ClipMaker(size=64), rank=0, world_size=8)
```
"""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info

from .animation import AnimationError
from .dataset import CHECKED_ROWS, ClipMaker, sample_generator
from .rows import check_captions, check_files, load_rows, read_row


logger = logging.getLogger(__name__)

MAX_PIECES = 64  # that local files are divided into
MAX_UNREADABLE = 1000  # rows in a row
READ_AHEAD = 16  # rows that are read at once


class StreamedClips(IterableDataset):
    """Training clips from data sets that are read while they arrive, epoch after epoch, without end.

        stream = StreamedClips(["user/stickers"], ClipMaker(size=64), rank=0, world_size=8)
        stream.resume(samples=4000, batch_size=16)  # of a run that has seen 4,000 samples on each process
        loader = DataLoader(stream, batch_size=16, num_workers=2)

    Every process and every DataLoader worker has its own part of the rows: files of its own as far as there are
    enough, and else every n-th row of files that it shares. It shuffles them within a buffer, anew in each epoch.
    Samples are like those of `StickerClips`: a row is a sample, and where a file cannot be read the next row that can
    stands in. So what a sample is follows from its number, the seed, and the numbers of processes and workers.

    Args:
        sources: Hub ids or local data, see `load_rows`; rows are taken from them in turns, one each.
        maker: how a file becomes a clip.
        caption_column, image_column, config_name, cache_dir: of the sources, see `load_rows`.
        seed: of the order and of the samples.
        rank, world_size: this process and the number of processes.
        buffer_size: rows among which the next one is drawn.
        max_samples: use the first rows only, this many. Every part then reads all of them.

    Raises:
        ValueError: as `load_rows`, or `max_samples` is below 1; when samples are read, if there are fewer rows than
            parts, or if `MAX_UNREADABLE` rows one after the other cannot be read.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike],
        maker: ClipMaker,
        caption_column: str | None = None,
        image_column: str | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 1000,
        config_name: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        max_samples: int | None = None,
    ):
        import datasets

        options = {"streaming": True, "config_name": config_name, "cache_dir": cache_dir}
        streams = []
        for source in sources:
            rows = load_rows(source, caption_column, image_column, **options)
            if not isinstance(rows, datasets.IterableDataset):  # local files; pieces for processes and workers
                rows = rows.to_iterable_dataset(num_shards=min(len(rows), MAX_PIECES))
            streams.append(rows)
        rows = streams[0]
        if len(streams) > 1:
            rows = datasets.interleave_datasets(streams, stopping_strategy="all_exhausted_without_replacement")
        self.num_pieces = rows.num_shards
        if max_samples is not None:
            if max_samples < 1:
                raise ValueError(f"`max_samples` must be at least 1, got {max_samples}.")
            rows, self.num_pieces = rows.take(max_samples), 1  # pieces would have to be cut short each on its own
        self.rows, self.maker, self.seed, self.buffer_size = rows, maker, seed, buffer_size
        self.rank, self.world_size = rank, world_size
        self.first_batch, self.batch_size = 0, 1

    def check(self) -> None:
        """Refuses, before a run starts, data whose first `CHECKED_ROWS` rows have no caption or no readable file.

        Raises:
            ValueError: see `check_captions` and `check_files`.
        """
        rows = list(self.rows.take(CHECKED_ROWS))
        check_captions([pa.chunked_array([[row["text"] for row in rows]], pa.string())])
        check_files(rows)

    def resume(self, samples: int, batch_size: int) -> None:
        """Begin behind the first `samples` samples of each process, exactly as if it had gone on.

        Call it before the DataLoader is made, which must have this `batch_size` and as many workers as it had, on as
        many processes. Rows that were used are read again, but neither decoded nor made into clips: at most one epoch
        to count it, and of the epoch that goes on what was used.

        Raises:
            ValueError: `samples` are not whole batches.
        """
        if samples % batch_size:
            raise ValueError(f"`samples` must be whole batches of {batch_size}, got {samples}.")
        self.first_batch, self.batch_size = samples // batch_size, batch_size

    def rows_of_part(self, part: int, parts: int, first: int) -> Iterator[dict[str, Any]]:
        """The rows of a part from number `first` on, without end; every epoch of it has equally many."""
        pieces = max(n for n in range(1, parts + 1) if parts % n == 0 and n <= self.num_pieces)
        rows = self.rows if pieces == 1 else self.rows.shard(pieces, part % pieces, contiguous=False)
        rows = rows.shuffle(self.seed, buffer_size=self.buffer_size)
        epoch = number = 0
        while True:
            rows.set_epoch(epoch)
            # By `iter`, as plain iteration would divide the rows among DataLoader workers once more.
            batches = rows.iter(READ_AHEAD)
            all_rows = (dict(zip(batch, values)) for batch in batches for values in zip(*batch.values()))
            start = number
            for row in itertools.islice(all_rows, part // pieces, None, parts // pieces):
                if number >= first:
                    yield row
                number += 1
            length = number - start
            if length == 0:
                raise ValueError(f"{parts} processes and workers share the data; too few rows for all, use fewer.")
            passed = max(first - number, 0) // length  # whole epochs that need not be read
            epoch, number = epoch + 1 + passed, number + passed * length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        workers, place = (1, 0) if worker is None else (worker.num_workers, worker.id)
        # Batches come from the workers in turn, and the DataLoader always begins with worker 0.
        turn = (self.first_batch + place) % workers
        part, parts = self.rank * workers + turn, self.world_size * workers
        first = len(range(turn, self.first_batch, workers)) * self.batch_size
        unreadable = 0
        for number, row in enumerate(self.rows_of_part(part, parts, first), start=first):
            try:
                animation = read_row(row)
            except AnimationError as error:
                logger.warning("Skipped: %s", error)
                unreadable += 1
                if unreadable == MAX_UNREADABLE:
                    raise ValueError(f"{unreadable} files in a row cannot be read; the last: {error}") from error
                continue
            table = self.maker.keyframe_table(animation, row) if len(animation.frames) > 1 else None
            for sample in range(number - unreadable, number + 1):
                index = sample * parts + part
                yield self.maker.sample(animation, row, table, sample_generator(self.seed, index)) | {"index": index}
            unreadable = 0
