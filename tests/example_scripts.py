"""The example scripts as modules, for the tests: they are no part of the package."""

import importlib.util
from pathlib import Path
from types import ModuleType


EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name: str) -> ModuleType:
    """A script of `examples/` by its path there, executed anew."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
