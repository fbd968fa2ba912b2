"""Signals that ask a training run to stop: it ends its step and saves first.

```python
loader = DataLoader(rows, num_workers=2, worker_init_fn=leave_signals_to_trainer)
with StopSignal() as stop:
    for step in range(steps):
        ...
        if stop.received(accelerator):
            save_checkpoint(...)
            return 128 + stop.number
```
"""

import os
import signal
import threading
import time
from types import FrameType

import torch
from accelerate import Accelerator


STOPPING = (signal.SIGTERM, signal.SIGINT)
ONE_CTRL_C = 2.0  # seconds in which SIGINTs are one: the terminal sends it to all, and torch's launcher passes it on


class StopSignal:
    """Within it, SIGTERM and SIGINT are remembered instead of obeyed; a second SIGINT interrupts as it always does.

    Off the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        number: the signal that came, 0 before. A script ends with exit code 128 + number.
    """

    def __init__(self) -> None:
        self.number = 0
        self._arrival = 0.0
        self._former = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._remember) for number in STOPPING}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not installed from Python

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._arrival = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._arrival > ONE_CTRL_C:
            signal.default_int_handler(number, frame)  # raises KeyboardInterrupt

    def received(self, accelerator: Accelerator) -> bool:
        """Whether a signal came, to this process or another: call on every process after the same step."""
        if accelerator.num_processes > 1:
            numbers = accelerator.gather(torch.tensor([self.number], device=accelerator.device))
            if not numbers.any():
                return False  # though one may have come meanwhile: the next call tells all
            self.number = self.number or int(numbers.max())
        return self.number != 0


def leave_signals_to_trainer(worker_id: int) -> None:
    """A DataLoader's `worker_init_fn`: the worker gets a process group of its own.

    A signal to the run's group, as Ctrl-C and batch systems send it, would end the workers, and with them the run
    before it could save. What the training process itself sends them still arrives, and when it is killed they end by
    themselves (PyTorch looks every few seconds).
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
