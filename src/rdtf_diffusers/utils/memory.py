# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Full memory, told apart from other errors, and garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or NumPy says that the memory of the accelerator or the computer is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(said in str(error) for said in ("can't allocate memory", "DefaultCPUAllocator: not enough memory"))


@contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection meanwhile: large imports make many objects, all of which stay, and looking through them
    again and again takes its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
