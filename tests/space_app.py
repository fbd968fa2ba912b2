"""The Space of `examples/space` as it runs, for the tests."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from example_scripts import load_example


layout = load_example("space/layout.py")
cards, jobs, links = (sys.modules[name] for name in ("cards", "jobs", "links"))
STEPS = 4  # enough for one preview


@contextmanager
def running(cache: Path) -> Iterator[str]:
    """The address of the Space, which is served while the block lasts: few steps, and no click comes too fast.

    Args:
        cache: the folder for all that is uploaded and made.
    """
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        patch.setattr(jobs.rate_limit, "calls", 1000)
        settings = jobs.defaults() | {"num_inference_steps": STEPS}
        patch.setattr(jobs, "defaults", lambda: settings)
        page = layout.build()
        try:
            _, address, _ = page.launch(**layout.LAUNCH, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
            yield address
        finally:
            page.close(verbose=False)
            torch.set_num_threads(threads)
