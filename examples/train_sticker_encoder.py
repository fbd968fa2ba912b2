"""Train the sticker encoder: clips and captions meet in one space, and the motion of a clip is named.

    accelerate launch examples/train_sticker_encoder.py \
        --train_data_dir stickers/static/train stickers/animated/train \
        --validation_data_dir stickers/static/validation stickers/animated/validation --output_dir sticker-encoder

Still pictures are set in motion by code, with captions that say how; of animations, frames evenly spaced in time are
taken. A batch holds such clips and, as a frame alone is cheaper and teaches what things are called, more still
pictures. Each clip or picture has to find its caption among those of the batch and the other way round (the
contrastive loss of CLIP, arXiv 2103.00020); clips with one procedural motion also have to tell which one it is.

The validation prints how often the motion of clips set in motion by code is recognised, and how often a clip finds
its caption among `--max_validation_samples`, first and in the first ten; the same for pictures alone. The saved
weights are the moving average, in half precision.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from step_trainer import StepTrainer, add_run_arguments, positive_int, run_script

from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.data.procedural import MOTIONS
from rdtf_diffusers.metrics.retrieval import equal_texts, retrieval_accuracy
from rdtf_diffusers.metrics.sticker_encoder import FrozenText, StickerEncoder, StickerEncoderModel


NO_MOTION = -100  # as cross_entropy wants it: this clip does not count
Samples = Sequence[dict[str, Any]]


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_run_arguments(
        parser, output_dir="sticker-encoder", max_train_steps=1000, lr_warmup_steps=100, adam_weight_decay=0.05
    )
    parser.add_argument("--validation_data_dir", nargs="+", default=[], help="Stickers to measure the model on.")
    parser.add_argument("--text_model", default=None, help="Pipeline whose text encoder reads; default: the bundled.")
    parser.add_argument("--max_validation_samples", type=positive_int, default=500)
    parser.add_argument("--resolution", type=positive_int, default=64, help="A multiple of 16.")
    parser.add_argument("--train_batch_size", type=positive_int, default=48, help="Clips per process.")
    parser.add_argument("--pictures_batch_size", type=positive_int, default=144, help="Still pictures per process.")
    parser.add_argument("--motion_weight", type=float, default=0.5, help="Weight of naming the motion.")
    parsed = parser.parse_args(args)
    if parsed.resolution % 16:
        parser.error(f"--resolution must be a multiple of 16, got {parsed.resolution}")
    return parsed


class Meeting(torch.nn.Module):
    """All that is computed in a step, in one forward, so that it can be wrapped for several processes."""

    def __init__(self, encoder: StickerEncoderModel):
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        clips: torch.Tensor,
        pictures: torch.Tensor,
        words: torch.Tensor,
        word_mask: torch.Tensor,
        same: torch.Tensor,
        motions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The contrastive loss and that of naming the motion.

        Args:
            clips: (N, F, 4, S, S).
            pictures: (M, 1, 4, S, S).
            words, word_mask: the text encoder's states (N + M, L, C) of the captions; which tokens count (N + M, L).
            same: (N + M, N + M), whether two captions are equal.
            motions: (N,), the number of each clip's motion, or `NO_MOTION`.
        """
        states = self.encoder.clip_states(clips)
        seen = self.encoder.embed_clips(torch.cat([states, self.encoder.clip_states(pictures)]))
        read = self.encoder.embed_texts(words, word_mask)
        logits = self.encoder.logit_scale.clamp(max=4.6).exp() * seen @ read.T
        logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -torch.inf)
        numbers = torch.arange(len(logits), device=logits.device)
        contrast = (F.cross_entropy(logits, numbers) + F.cross_entropy(logits.T, numbers)) / 2
        naming = F.cross_entropy(self.encoder.motion_head(states), motions, reduction="sum")
        return contrast, naming / (motions != NO_MOTION).sum().clamp(min=1)


def motion_numbers(samples: Samples, motions: Sequence[str]) -> torch.Tensor:
    """The number of each sample's motion (N,), `NO_MOTION` for those with none, several, or a real one."""
    places = {name: number for number, name in enumerate(motions)}
    named = [sample.get("motions", ()) for sample in samples]
    return torch.tensor([places[names[0]] if len(names) == 1 else NO_MOTION for names in named])


def move(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Draw pictures (M, 1, 4, S, S) smaller or larger, turned a little and elsewhere: a thing is itself anywhere."""
    count, _, _, size, _ = pictures.shape
    angle, zoom = rng.uniform(-0.3, 0.3, count), 1 / rng.uniform(0.6, 1.05, count)
    rows = [[np.cos(angle) * zoom, -np.sin(angle) * zoom], [np.sin(angle) * zoom, np.cos(angle) * zoom]]
    theta = np.concatenate([np.array(rows), rng.uniform(-0.3, 0.3, (2, 1, count))], axis=1)  # (2, 3, M)
    grid = F.affine_grid(torch.from_numpy(theta).float().permute(2, 0, 1), (count, 4, size, size), align_corners=False)
    moved = F.grid_sample(pictures[:, 0] + 1, grid, align_corners=False)  # transparent, which is -1, lies around it
    return (moved - 1)[:, None]


class Trainer(StepTrainer):
    """One training run: clips, pictures, the encoder, its moving average."""

    name = "train_sticker_encoder"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.text = FrozenText(args.text_model)
        self.encoder = StickerEncoderModel(
            sample_size=args.resolution,
            text_dim=self.text.model.config.hidden_size,
            motions=tuple(MOTIONS),
            text_encoder=self.text.fingerprint,
        )
        self.clips = self.stream(args.train_data_dir)
        self.clips.check()
        self.validation = self.stream(args.validation_data_dir) if args.validation_data_dir else None
        self.prepare(Meeting(self.encoder))

    def stream(self, sources: Sequence[str]) -> StickerClips:
        """Pictures in motion and animations, as clips of the network's length."""
        frames = self.encoder.config.num_frames
        size = self.args.resolution
        maker = ClipMaker(
            frames, size, 4, 1.0, min_keyframes=frames, max_keyframes=frames, keyframes="uniform", random_flip=True
        )
        return StickerClips(sources, maker, seed=self.args.seed)

    def draw(self, step: int, rng: np.random.Generator) -> tuple[Samples, Samples]:
        """This process's clips and pictures of a step."""
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        size = self.args.train_batch_size
        first = (step - 1) * size * processes
        clips = [self.clips[first + number * processes + process] for number in range(size)]
        chosen = rng.integers(len(self.clips), size=self.args.pictures_batch_size)
        return clips, [first_picture(self.clips, int(row)) for row in chosen]

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """One optimiser step; returns its losses."""
        rng = np.random.default_rng([self.args.seed, step, self.accelerator.process_index])
        clips, pictures = self.draw(step, rng)
        device = self.accelerator.device
        captions = [sample["caption"] for sample in [*clips, *pictures]]
        contrast, naming = self.model(
            stack(clips).to(device),
            move(stack(pictures), rng).to(device),
            *self.text(captions, device),
            equal_texts(captions).to(device),
            motion_numbers(clips, self.encoder.config.motions).to(device),
        )
        self.optimise(contrast + self.args.motion_weight * naming)
        return {"contrast": contrast.detach(), "motion": naming.detach()}

    def save_model(self) -> dict[str, float]:
        """Saves the moving average in half precision and measures it."""
        model = copy.deepcopy(self.encoder)
        self.ema.copy_to(model.parameters())
        model.half().save_pretrained(self.output_dir)
        encoder = StickerEncoder(model.float(), self.text)
        if self.validation is None:
            return {}
        count = min(len(self.validation), self.args.max_validation_samples)
        clips = [self.validation[number] for number in range(count)]
        rows = range(0, len(self.validation), len(self.validation) // count)[:count]
        pictures = [first_picture(self.validation, row) for row in rows]
        return measure(encoder, clips, "clips") | measure(encoder, pictures, "pictures")


def first_picture(clips: StickerClips, row: int) -> dict[str, Any]:
    """A picture, or the first frame of an animation, as a clip of one frame with its caption.

    For a row that cannot be read the next one stands in. One can be: a sample of `clips` was drawn before.
    """
    while (animation := clips.read(row)) is None:
        row = (row + 1) % len(clips)
    return {"clip": clips.maker.clip(animation.frames[:1]), "caption": clips.rows[row]["text"]}


def stack(samples: Samples) -> torch.Tensor:
    return torch.stack([sample["clip"] for sample in samples])


def measure(encoder: StickerEncoder, samples: Samples, name: str) -> dict[str, float]:
    """Retrieval among the samples, and the share of single motions that are recognised."""
    captions = [sample["caption"] for sample in samples]
    similarities, same = encoder.encode_clips(stack(samples)) @ encoder.encode_texts(captions).T, equal_texts(captions)
    quality = {
        f"validation/{name}_top{k}": retrieval_accuracy(similarities, k, same).float().mean().item()
        for k in (1, 10)
        if k <= len(samples)
    }
    known = motion_numbers(samples, encoder.motions)
    if (counted := known != NO_MOTION).any():
        guessed = encoder.classify_motion(stack(samples)).argmax(dim=1)
        quality[f"validation/{name}_motion"] = (guessed == known)[counted].float().mean().item()
    return quality


def main(args: list[str] | None = None) -> int:
    """Train; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    return run_script(Trainer, parse_args, args)


if __name__ == "__main__":
    sys.exit(main())
