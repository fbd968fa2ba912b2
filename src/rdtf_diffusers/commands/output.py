"""What a command leaves and says: sidecars of settings, names of files, the list of what was written."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..utils.files import write_whole


def write_sidecar(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes `sticker.webp.json` beside `sticker.webp`."""
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    write_whole(path.with_name(f"{path.name}.json"), text.encode())


def slug(text: str) -> str:
    """A file name of a prompt, of at most 60 characters and 120 bytes: "A dog, jumping!" is "a-dog-jumping"."""
    name = re.sub(r"[^\w]+", "-", text.lower()).strip("-")[:60]
    return name.encode()[:120].decode(errors="ignore") or "sticker"


def report(results: Iterable[dict[str, Any]], as_json: bool) -> int:
    """Prints the results for programs, or one path a line as soon as it is written; how many there were.

    What was changed on the way goes to stderr.
    """
    written = []
    for result in results:
        written.append(result)
        if not as_json:
            print(result["path"], flush=True)
            for note in result.get("notes", ()):
                print(f"{result['path']}: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(written, indent=2, ensure_ascii=False))
    return len(written)
