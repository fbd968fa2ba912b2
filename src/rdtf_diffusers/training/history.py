"""The figures of a run, one line of JSON per optimiser step, the same after a crash as without one.

```python
history = RunHistory(output_dir / HISTORY_FILE, first_step=500)  # the run resumes at step 500
history.append(501, {"loss": 0.31, "task": "i2v", "lr": 1e-5})
history.append(501, {"motion": {"a dog jumping": 0.04}})  # a validation
records = read_history(output_dir / HISTORY_FILE)  # [{"step": 1, "loss": ...}, ...]
```
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .tasks import TASKS


HISTORY_FILE = "history.jsonl"


class RunHistory:
    """Appends the figures of each step to a file; opened by one process of the run.

    Args:
        path: The file; it is made if it is not there.
        first_step: Optimiser steps that are done, 0 for a new run. Lines of later steps, which a crash has left behind
            and which will come again, are dropped, and so is a last line that is not whole.

    Raises:
        ValueError: A line that is kept, or the first that is not, is damaged.
    """

    def __init__(self, path: str | os.PathLike, first_step: int) -> None:
        self._file = open(path, "ab")
        self._file.truncate(_end_of_step(Path(path), first_step))

    def append(self, step: int, figures: Mapping[str, Any]) -> None:
        """Writes one line, at once, so that a killed process leaves all its steps.

        Args:
            step: Optimiser steps done, not below that of the line before.
            figures: Numbers, strings, and lists or dicts of them, by name.
        """
        self._file.write(json.dumps({"step": step, **figures}).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_history(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Everything that a run has written, oldest first; a last line that is not whole is left out.

    Raises:
        OSError: There is no such file.
        ValueError: A line is damaged; it is named.
    """
    return [record for record, _ in _records(Path(path))]


def final_losses(records: Sequence[Mapping[str, Any]], share: float = 0.1) -> dict[str, float]:
    """Mean loss of each task over the last steps of a run, in the order of `TASKS`.

    Args:
        records: As `read_history` gives them.
        share: The part of the steps that counts, in (0, 1]; a task that was not drawn in it is left out.
    """
    steps = [record for record in records if "loss" in record]
    if not steps:
        return {}
    after = steps[-1]["step"] * (1 - share)
    losses: dict[str, list[float]] = {task: [] for task in TASKS}
    for record in steps:
        if record["step"] > after:
            losses[record["task"]].append(record["loss"])
    return {task: sum(values) / len(values) for task, values in losses.items() if values}


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Records, each with the byte at which its line ends."""
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # a process was killed while writing it
                return
            end += len(line)
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is damaged ({error}); delete it to go on") from error
            yield record, end


def _end_of_step(path: Path, step: int) -> int:
    """Bytes up to the last line of `step`, or of the steps before it; 0 for step 0, where a run begins anew."""
    kept = 0
    for record, end in _records(path) if step else ():
        if record["step"] > step:
            break
        kept = end
    return kept
