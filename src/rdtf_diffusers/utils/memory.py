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


_frozen = False


@contextmanager
def made_to_stay() -> Iterator[None]:
    """For what is needed until the process ends: no garbage collection meanwhile, and none that looks at what was made
    afterwards. The last one, when Python ends, would take a second. What is no longer needed goes at the next use."""
    global _frozen
    if _frozen:
        gc.unfreeze()
        gc.collect()
    _frozen = False
    with collection_paused():
        yield
        gc.freeze()  # before collection goes on, which would look at all of it once
        _frozen = True
