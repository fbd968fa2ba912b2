"""Which of the six tasks is trained next: uniform, linear or difficulty-adaptive curriculum.

Source: RDTF (arXiv 2503.17735), section on curriculum learning and table 6.

    curriculum = make_curriculum("adaptive", total_steps=50_000)
    task = curriculum.draw(step_seed)   # once per optimiser step, the same on every rank
    curriculum.update(loss)             # once per optimiser step, averaged over ranks and micro-steps
"""

import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from .tasks import TASKS


HISTORY_LENGTH = 1000  # losses and PID signals that are remembered
MIN_SIGNALS = 10  # with fewer signals a rank says nothing, and the level follows the step
MAX_LEVEL = 4

# Weight of each task of a family: (value at the start, change over the run).
STATIC_WEIGHTS = {"generation": (0.1, 0.8), "interpolation": (0.9, -0.8), "prediction": (0.7, -0.4)}
# Weight of each task of a family: (value at level 0, change per level).
ADAPTIVE_WEIGHTS = {"generation": (0.1, 0.2), "interpolation": (0.9, -0.2), "prediction": (0.5, 0.0)}


class PIDTerms(NamedTuple):
    """The three summands of the PID signal."""

    proportional: float
    integral: float
    derivative: float


class Curriculum:
    """Every task is equally likely ("without CL"); base of the other two.

    Args:
        total_steps: Optimiser steps of the whole run, S.
        task_weights: Multipliers for tasks by name, >= 0 (0: never drawn); a task that is not named keeps 1.

    Attributes:
        step: Optimiser steps done, which is the number of `update` calls.

    Raises:
        ValueError: `total_steps` is not positive; `task_weights` has an unknown name or a negative weight, or leaves
            no task.
    """

    kind: ClassVar[str] = "uniform"

    def __init__(self, total_steps: int, task_weights: Mapping[str, float] | None = None) -> None:
        if total_steps < 1:
            raise ValueError(f"`total_steps` must be at least 1, got {total_steps}")
        task_weights = dict(task_weights or {})
        if unknown := task_weights.keys() - TASKS.keys():
            raise ValueError(f"`task_weights` names must be among {', '.join(TASKS)}, got {sorted(unknown)}")
        self.total_steps = total_steps
        self.task_weights = {task: float(task_weights.get(task, 1.0)) for task in TASKS}
        if not all(0.0 <= weight < math.inf for weight in self.task_weights.values()):
            raise ValueError(f"`task_weights` must be finite and not negative, got {task_weights}")
        if not any(self.task_weights.values()):
            raise ValueError(f"`task_weights` must leave at least one task above 0, got {task_weights}")
        self.step = 0

    @property
    def progress(self) -> float:
        """Share of the run that is done, r = min(step / S, 1)."""
        return min(self.step / self.total_steps, 1.0)

    def family_weight(self, family: str) -> float:
        """Weight of each task of `family` ("generation", "interpolation" or "prediction") at this step."""
        return 1.0

    def probabilities(self) -> dict[str, float]:
        """Probability of each task at this step, in the order of `TASKS`."""
        weights = {name: self.task_weights[name] * self.family_weight(task.family) for name, task in TASKS.items()}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def draw(self, step_seed: int) -> str:
        """Draws the task of one optimiser step.

        Args:
            step_seed: Differs from step to step and is equal on all ranks, for example run seed + step. Nothing else
                is random, so ranks that saw the same losses draw the same task.
        """
        probabilities = self.probabilities()
        return random.Random(step_seed).choices(list(probabilities), list(probabilities.values()))[0]

    def update(self, loss: float) -> None:
        """Counts one optimiser step and learns from its loss.

        Args:
            loss: Training loss of the step, averaged over accumulation micro-steps and ranks.

        Raises:
            ValueError: `loss` is not finite (a history would carry it for a thousand steps).
        """
        if not math.isfinite(loss):
            raise ValueError(f"`loss` must be finite, got {loss} after {self.step} steps")
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to continue exactly, as plain numbers, strings and lists."""
        return {"kind": self.kind, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from `state`, the `state_dict()` of a curriculum of the same kind.

        Raises:
            ValueError: `state` belongs to another kind.
        """
        if state["kind"] != self.kind:
            raise ValueError(f"`state` must be of a curriculum of kind {self.kind!r}, got {state['kind']!r}")
        self.step = state["step"]


class LinearCurriculum(Curriculum):
    """Linear curriculum (LCL), the static difficulty alone: from interpolation to generation as the run goes on.

    RDTF (arXiv 2503.17735), section on curriculum learning, ablation "LCL".
    """

    kind = "linear"

    def family_weight(self, family: str) -> float:
        start, change = STATIC_WEIGHTS[family]
        return start + change * self.progress


class AdaptiveCurriculum(LinearCurriculum):
    """Difficulty-adaptive curriculum (DCL): the static part plus a level 0..4 that a PID signal of the loss sets.

    P_t = K_p L_t + K_i mean(last losses) + K_d (L_t - L_{t-1}). A signal that is high among the remembered ones means
    a struggling network and gives a low, easy level. RDTF (arXiv 2503.17735), section on curriculum learning, table 6.

    Args:
        total_steps: Optimiser steps of the whole run, S.
        task_weights: As in `Curriculum`.
        pid: (K_p, K_i, K_d).

    Attributes:
        losses: The last 1000 losses at most, oldest first.
        signals: The last 1000 values of P at most, oldest first.
    """

    kind = "adaptive"

    def __init__(
        self,
        total_steps: int,
        task_weights: Mapping[str, float] | None = None,
        pid: tuple[float, float, float] = (5.0, 3.0, 1.3),
    ) -> None:
        super().__init__(total_steps, task_weights)
        self.pid = pid
        self.losses: deque[float] = deque(maxlen=HISTORY_LENGTH)
        self.signals: deque[float] = deque(maxlen=HISTORY_LENGTH)

    @property
    def terms(self) -> PIDTerms:
        """Proportional, integral and derivative term of the last signal; zeros before the first `update`."""
        if not self.losses:
            return PIDTerms(0.0, 0.0, 0.0)
        k_p, k_i, k_d = self.pid
        loss = self.losses[-1]
        previous = self.losses[-2] if len(self.losses) > 1 else loss  # the first loss has not changed
        return PIDTerms(k_p * loss, k_i * math.fsum(self.losses) / len(self.losses), k_d * (loss - previous))

    @property
    def level(self) -> int:
        """Difficulty level 0 (easy) to 4 (hard): the rank of the last signal in fifths, counted from the highest."""
        if len(self.signals) < MIN_SIGNALS:
            return round(MAX_LEVEL * self.progress)
        higher = sum(signal > self.signals[-1] for signal in self.signals)
        return (MAX_LEVEL + 1) * higher // len(self.signals)  # at most 4, as the last signal is not above itself

    def family_weight(self, family: str) -> float:
        base, change = ADAPTIVE_WEIGHTS[family]
        return super().family_weight(family) + base + change * self.level

    def update(self, loss: float) -> None:
        super().update(loss)
        self.losses.append(float(loss))
        self.signals.append(sum(self.terms))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"losses": list(self.losses), "signals": list(self.signals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.losses = deque(state["losses"], maxlen=HISTORY_LENGTH)
        self.signals = deque(state["signals"], maxlen=HISTORY_LENGTH)


def make_curriculum(
    kind: str,
    total_steps: int,
    pid: tuple[float, float, float] = (5.0, 3.0, 1.3),
    task_weights: Mapping[str, float] | None = None,
) -> Curriculum:
    """Makes the curriculum that a command line names.

    Args:
        kind: "uniform", "linear" or "adaptive".
        total_steps: Optimiser steps of the whole run.
        pid: (K_p, K_i, K_d), read by "adaptive" alone.
        task_weights: As in `Curriculum`.

    Raises:
        ValueError: `kind` is none of the three, or another argument is refused by `Curriculum`.
    """
    if kind == "uniform":
        return Curriculum(total_steps, task_weights)
    if kind == "linear":
        return LinearCurriculum(total_steps, task_weights)
    if kind == "adaptive":
        return AdaptiveCurriculum(total_steps, task_weights, pid)
    raise ValueError(f'`kind` must be "uniform", "linear" or "adaptive", got {kind!r}')
