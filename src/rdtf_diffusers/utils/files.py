"""Files that are there as a whole or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, data: bytes | memoryview) -> None:
    """Write a file that is there, and on the disk, as a whole or not at all."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
