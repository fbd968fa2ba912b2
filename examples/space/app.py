"""Starts the Space: `python app.py`.

Spaces install requirements.txt before they see any other file of theirs, so the package comes from the wheel beside
this file when the Space starts.
"""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def install_package() -> None:
    """Installs rdtf_diffusers from the wheel, unless it is there.

    Raises:
        FileNotFoundError: if there is no wheel; the message says how one is built.
    """
    if find_spec("rdtf_diffusers"):
        return
    folder = Path(__file__).parent
    wheels = sorted(folder.glob("rdtf_diffusers-*.whl"), key=lambda wheel: wheel.stat().st_mtime)
    if not wheels:
        raise FileNotFoundError(f"no wheel in {folder}; build one: python -m pip wheel --no-deps -w examples/space .")
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", str(wheels[-1])], check=True)
    importlib.invalidate_caches()


if __name__ == "__main__":
    install_package()
    from layout import LAUNCH, build

    build().launch(**LAUNCH)
