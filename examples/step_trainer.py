"""What the trainings of the small models share: arguments, optimiser, moving average, checkpoints and logs.

class Trainer(StepTrainer):
    name = "train_something"

    def __init__(self, args):
        super().__init__(args)
        self.prepare(model)

    def step(self, step):        # one optimiser step on the batch of that number
    def save_model(self):        # writes the model, returns its quality
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from rdtf_diffusers.training.run_state import (
    checkpoint_step,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    warn_if_bf16_is_slow,
)
from rdtf_diffusers.utils.memory import is_out_of_memory


logger = logging.getLogger("step_trainer")


def positive_int(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {value:g}")
    return value


def add_run_arguments(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """Adds what every run takes; `defaults` are the model's own."""
    parser.add_argument("--train_data_dir", nargs="+", required=True, help="Folders with metadata.jsonl, or Hub ids.")
    parser.add_argument("--output_dir")
    parser.add_argument("--max_train_steps", type=positive_int)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--lr_scheduler", default="cosine", help="A name that diffusers.optimization knows.")
    parser.add_argument("--lr_warmup_steps", type=int, default=200)
    parser.add_argument("--adam_weight_decay", type=float, default=1e-4)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--ema_decay", type=float, default=0.998)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpointing_steps", type=positive_int, default=1000)
    parser.add_argument("--checkpoints_total_limit", type=positive_int, default=2)
    parser.add_argument("--resume_from_checkpoint", default=None, help='A checkpoint folder, or "latest".')
    parser.add_argument("--report_to", default=None, help='For example "tensorboard".')
    parser.add_argument("--logging_dir", default="logs")
    parser.add_argument("--logging_steps", type=positive_int, default=50)
    parser.set_defaults(**defaults)


class StepTrainer:
    """One training run whose batches depend on the seed and the step alone, so that a resumed run goes on exactly.

    Args:
        args: as `add_run_arguments` reads them.
    """

    name: str

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.output_dir = Path(args.output_dir)
        project = ProjectConfiguration(str(self.output_dir), str(self.output_dir / args.logging_dir))
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision, log_with=args.report_to, project_config=project
        )
        warn_if_bf16_is_slow(self.accelerator)
        set_seed(args.seed)

    def prepare(self, model: torch.nn.Module) -> None:
        """Sets up `model`, in which all is computed in one forward; its trainable weights are trained and averaged."""
        args = self.args
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=args.learning_rate, weight_decay=args.adam_weight_decay)
        # Accelerate steps a prepared schedule once per process.
        processes = self.accelerator.num_processes
        schedule = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps * processes,
            num_training_steps=args.max_train_steps * processes,
        )
        self.weights = weights
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        self.ema = EMAModel(weights, decay=args.ema_decay)
        self.ema.to(self.accelerator.device)
        self.accelerator.register_for_checkpointing(self.ema)
        self.accelerator.init_trackers(self.name, config={"max_train_steps": args.max_train_steps})

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """One optimiser step; returns its losses."""
        raise NotImplementedError

    def save_model(self) -> dict[str, float]:
        """Saves the moving average as a model, on the main process, and measures it."""
        raise NotImplementedError

    def optimise(self, loss: torch.Tensor) -> None:
        """Gradients, weights, rate, moving average."""
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.weights, self.args.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.weights)

    def resume(self) -> int:
        """Loads the checkpoint that was asked for and returns its step; 0 for a fresh start."""
        folder = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint, self.accelerator)
        if folder is None:
            return 0
        load_checkpoint(self.accelerator, folder)
        self.ema.to(self.accelerator.device)
        return checkpoint_step(folder)

    def save(self, step: int) -> dict[str, float]:
        """Writes a checkpoint and the model; returns the model's quality."""
        save_checkpoint(self.accelerator, self.output_dir, step, self.args.checkpoints_total_limit)
        return self.save_model() if self.accelerator.is_main_process else {}

    def run(self) -> None:
        """Trains to `--max_train_steps`, with a checkpoint every `--checkpointing_steps` and at the end."""
        args = self.args
        start = self.resume()
        began = time.monotonic()
        for step in range(start + 1, args.max_train_steps + 1):
            logs = self.step(step)
            if step % args.logging_steps == 0:
                logs = {name: value.item() for name, value in logs.items()}
                logs |= {"lr": self.schedule.get_last_lr()[0], "steps/s": (step - start) / (time.monotonic() - began)}
                self.report(logs, step)
            if step % args.checkpointing_steps == 0 or step == args.max_train_steps:
                self.report(self.save(step), step)
        self.accelerator.end_training()

    def report(self, values: dict[str, float], step: int) -> None:
        """Logs the values to the console and to the trackers."""
        if values and self.accelerator.is_main_process:
            logger.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        self.accelerator.log(values, step=step)


def run_script(
    trainer: type[StepTrainer], parse_args: Callable[[list[str] | None], argparse.Namespace], args: list[str] | None
) -> int:
    """Trains; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        trainer(parse_args(args)).run()
    except (OSError, ValueError) as error:
        print(f"{trainer.name}.py: error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{trainer.name}.py: error: the memory is full; give a smaller --train_batch_size", file=sys.stderr)
        return 2
    return 0
