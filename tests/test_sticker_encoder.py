"""The sticker encoder: its network, its words, its training, and the bundled one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from example_scripts import load_example
from PIL import Image

from rdtf_diffusers.checkpoints import sticker_encoder_checkpoint
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.data.procedural import animate
from rdtf_diffusers.metrics.retrieval import equal_texts, retrieval_accuracy
from rdtf_diffusers.metrics.sticker_encoder import (
    FrozenText,
    StickerEncoder,
    StickerEncoderModel,
    load_sticker_encoder,
)


script = load_example("train_sticker_encoder.py")


@pytest.fixture(scope="module")
def text() -> FrozenText:
    return FrozenText()


@pytest.fixture(scope="module")
def encoder(text) -> StickerEncoder:
    torch.manual_seed(0)
    model = StickerEncoderModel(
        sample_size=32, widths=(8, 16, 24), num_layers=1, num_heads=2, embed_dim=12, motions=("jump", "spin"),
        text_encoder=text.fingerprint,
    )  # fmt: skip
    return StickerEncoder(model, text, batch_size=2)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.rand(5, 8, 4, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_clips_and_captions_are_unit_vectors_of_one_space(encoder, clips):
    seen = encoder.encode_clips(clips)
    read = encoder.encode_texts(["a dog", "a cat jumping high"])
    assert seen.shape == (5, 12) and read.shape == (2, 12)
    assert torch.allclose(torch.cat([seen, read]).norm(dim=1), torch.ones(7))
    assert encoder.clip_features(clips).shape == (5, 24)
    assert encoder.classify_motion(clips).shape == (5, len(encoder.motions)) == (5, 2)


def test_a_clip_does_not_depend_on_its_batch(encoder, clips):
    together = encoder.encode_clips(clips)
    alone = torch.cat([encoder.encode_clips(clip[None]) for clip in clips])
    assert torch.allclose(together, alone, atol=1e-6)
    words = ["a dog", "a cat that is jumping very high"]
    assert torch.allclose(encoder.encode_texts(words)[:1], encoder.encode_texts(words[:1]), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (5, 4, 32, 32), (8, 4, 48, 40)])
def test_any_length_and_size(encoder, shape):
    assert encoder.encode_clips(torch.zeros(2, *shape)).shape == (2, 12)


@pytest.mark.parametrize("shape", [(0, 8, 4, 32, 32), (2, 8, 2, 32, 32), (8, 4, 32, 32)])
def test_other_shapes_are_refused(encoder, shape):
    with pytest.raises(ValueError, match=r"must be floats \(B, F, C, H, W\) with 3 or 4 channels"):
        encoder.clip_features(torch.zeros(shape))


def test_clips_of_the_own_size_go_in_as_they_are(encoder, clips):
    assert torch.equal(torch.cat(list(encoder._prepared(clips))), clips)


def test_rgb_is_opaque(encoder, clips):
    opaque = torch.cat([clips[:, :, :3], torch.ones_like(clips[:, :, :1])], dim=2)
    assert torch.equal(encoder.encode_clips(clips[:, :, :3]), encoder.encode_clips(opaque))


def test_other_sizes_are_padded_and_resized_like_stickers(encoder):
    wide = torch.full((1, 2, 4, 16, 32), -1.0)
    wide[..., 2:14, 10:20] = torch.tensor([0.4, -0.4, 0.0, 0.4]).view(4, 1, 1)
    (padded,) = encoder._prepared(wide)
    assert padded.shape == (1, 2, 4, 32, 32)
    assert torch.allclose(padded[..., 8:24, :], wide) and (padded[..., :8, :] == -1).all()
    (larger,) = encoder._prepared(wide.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4))
    assert torch.allclose(larger, padded, atol=0.3)  # edges are softer
    assert (larger[:, :, :3] <= larger[:, :, 3:]).all() and larger.min() >= -1


def test_the_order_of_frames_is_seen(encoder, clips):
    turned = encoder.clip_features(clips.flip(1))
    assert (turned - encoder.clip_features(clips)).abs().max() > 1e-4


def test_another_text_encoder_is_refused(encoder, text):
    model = StickerEncoderModel(widths=(8, 16, 24), num_layers=1, num_heads=2, motions=("jump",), text_encoder="0123")
    with pytest.raises(ValueError, match="trained with text encoder 0123, not with"):
        StickerEncoder(model, text)


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sticker encoder"):
        load_sticker_encoder(tmp_path)
    with pytest.raises(ValueError, match="no pipeline with a text encoder"):
        FrozenText(tmp_path)


def test_retrieval_accuracy_against_sorting():
    similarities = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    for k in (1, 3, 20):
        expected = [i in similarities[i].argsort(descending=True)[:k] for i in range(20)]
        assert retrieval_accuracy(similarities, k).tolist() == expected


def test_an_encoder_that_tells_nothing_apart_finds_nothing():
    assert not retrieval_accuracy(torch.zeros(3, 3)).any()
    assert not retrieval_accuracy(torch.zeros(3, 3), 2).any()
    assert retrieval_accuracy(torch.zeros(3, 3), 3).all()


def test_equal_captions_are_all_right():
    same = equal_texts(["a dog", "a cat", "a dog"])
    assert same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    similarities = torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.2, 0.3], [0.6, 0.5, 0.6]])
    assert retrieval_accuracy(similarities).tolist() == [False, False, False]
    assert retrieval_accuracy(similarities, same=same).tolist() == [True, False, True]
    assert retrieval_accuracy(similarities, 2, same=same).tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"`same` must be bool of the shape \(3, 3\), got torch.bool \(2, 2\)"):
        retrieval_accuracy(similarities, same=same[:2, :2])
    assert retrieval_accuracy(similarities[:2], same=same[:2]).tolist() == [True, False]
    with pytest.raises(ValueError, match="a right item for every query"):
        retrieval_accuracy(similarities, same=same & torch.tensor([False, True, True])[:, None])


@pytest.mark.parametrize(
    "similarities, k, message",
    [
        (torch.zeros(2, 3), 1, r"must be \(N, N\)"),
        (torch.zeros(0, 0), 1, r"must be \(N, N\)"),
        (torch.full((2, 2), torch.nan), 1, "NaN"),
        (torch.zeros(2, 2), 3, r"`k` must be in 1..2"),
    ],
)
def test_retrieval_accuracy_refuses(similarities, k, message):
    with pytest.raises(ValueError, match=message):
        retrieval_accuracy(similarities, k)


def test_the_losses_against_loops():
    torch.manual_seed(0)
    encoder = StickerEncoderModel(
        sample_size=16, widths=(8, 8, 8), num_layers=1, num_heads=1, embed_dim=4, text_dim=6, motions=("jump", "spin")
    )
    clips, pictures = torch.rand(3, 8, 4, 16, 16), torch.rand(2, 1, 4, 16, 16)
    words, mask = torch.randn(5, 3, 6), torch.tensor([[1, 1, 0]] * 5)
    same = torch.eye(5, dtype=torch.bool)
    same[0, 4] = same[4, 0] = True
    motions = torch.tensor([1, script.NO_MOTION, 0])
    contrast, naming = script.Meeting(encoder)(clips, pictures, words, mask, same, motions)

    seen = [*encoder.embed_clips(encoder.clip_states(clips)), *encoder.embed_clips(encoder.clip_states(pictures))]
    read = encoder.embed_texts(words, mask)
    scale = encoder.logit_scale.exp()
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or not same[i, j]]
        to_text = torch.stack([scale * seen[i] @ read[j] for j in others])
        to_clip = torch.stack([scale * seen[j] @ read[i] for j in others])
        right = scale * seen[i] @ read[i]
        expected += (to_text.logsumexp(0) - right + to_clip.logsumexp(0) - right) / 10
    assert contrast.item() == pytest.approx(expected.item(), rel=1e-4)
    logits = encoder.motion_head(encoder.clip_states(clips)).log_softmax(dim=1)
    assert naming.item() == pytest.approx(-(logits[0, 1] + logits[2, 0]).item() / 2, rel=1e-4)


@pytest.fixture
def stickers(tmp_path) -> Path:
    """Five pictures and an animation with captions."""
    folder = tmp_path / "stickers"
    folder.mkdir()
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(256, size=(16, 16, 4), dtype=np.uint8)) for _ in range(8)]
    rows = []
    for number, frame in enumerate(frames[:5]):
        frame.save(folder / f"{number}.webp", lossless=True)
        rows.append({"file_name": f"{number}.webp", "text": f"thing {number}"})
    frames[5].save(folder / "moving.webp", save_all=True, append_images=frames[6:], duration=100, lossless=True)
    rows.append({"file_name": "moving.webp", "text": "a thing that moves"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_training_saves_an_encoder_and_resumes_exactly(stickers, tmp_path, one_thread):
    def train(output: str, *more: str) -> dict[str, torch.Tensor]:
        arguments = ["--train_data_dir", str(stickers), "--validation_data_dir", str(stickers)]
        arguments += ["--resolution", "16", "--train_batch_size", "3", "--pictures_batch_size", "2"]
        arguments += ["--lr_warmup_steps", "1", "--logging_steps", "1", "--checkpointing_steps", "1"]
        assert script.main([*arguments, "--max_train_steps", "2", "--output_dir", str(tmp_path / output), *more]) == 0
        return load_sticker_encoder(tmp_path / output).model.state_dict()

    whole = train("whole")
    assert all(torch.isfinite(weight).all() for weight in whole.values())
    first = tmp_path / "whole" / "checkpoint-1"
    resumed = train("resumed", "--resume_from_checkpoint", str(first))
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_moved_pictures_are_the_same_things_elsewhere():
    pictures = torch.full((16, 1, 4, 16, 16), -1.0)
    pictures[..., 4:12, 4:12] = torch.linspace(-0.5, 1, 16)[:, None, None, None, None]
    moved = script.move(pictures, np.random.default_rng(0))
    assert moved.shape == pictures.shape
    assert torch.allclose(moved.amax(dim=(1, 2, 3, 4)), pictures.amax(dim=(1, 2, 3, 4)), atol=1e-5)
    assert (moved[..., 0, 0] == -1).all(), "what is not covered is transparent"
    assert len({tuple(picture[0, 0].argmax(dim=1).tolist()) for picture in moved}) > 8


def test_pictures_are_made_when_they_are_drawn(stickers):
    (stickers / "1.webp").write_bytes(b"broken")
    clips = StickerClips([stickers], ClipMaker(size=16))
    drawn = [script.first_picture(clips, row) for row in (0, 1, 2, 5)]
    assert [sample["caption"] for sample in drawn] == ["thing 0", "thing 2", "thing 2", "a thing that moves"]
    for row, sample in zip((0, 2, 2, 5), drawn):
        assert torch.equal(sample["clip"], clips.maker.clip(clips.read(row).frames[:1]))


def test_only_single_procedural_motions_are_named():
    samples = [{"motions": ("spin",)}, {"motions": ("spin", "jump")}, {"motions": ()}, {}]
    expected = [1, script.NO_MOTION, script.NO_MOTION, script.NO_MOTION]
    assert script.motion_numbers(samples, ("jump", "spin")).tolist() == expected


def test_errors_are_one_line(tmp_path, capsys):
    assert script.main(["--train_data_dir", str(tmp_path / "absent"), "--output_dir", str(tmp_path)]) == 2
    assert "\ntrain_sticker_encoder.py: error: " in "\n" + capsys.readouterr().err.replace("\r", "\n")
    with pytest.raises(SystemExit):
        script.parse_args(["--train_data_dir", "stickers", "--resolution", "20"])
    assert "--resolution must be a multiple of 16" in capsys.readouterr().err


def test_the_bundled_encoder_knows_motions_of_a_picture_that_it_has_not_seen():
    encoder = load_sticker_encoder()
    files = list(Path(sticker_encoder_checkpoint()).iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {"README.md", "ATTRIBUTION.md"} <= {file.name for file in files}
    picture = torch.zeros(4, 96, 96)  # a red flag on a brown pole
    picture[:, 10:90, 20:28] = torch.tensor([0.5, 0.3, 0.1, 1.0])[:, None, None]
    picture[:, 12:48, 28:80] = torch.tensor([0.9, 0.1, 0.1, 1.0])[:, None, None]
    rng = np.random.default_rng(0)
    motions = [motion for motion in encoder.motions for _ in range(2)]
    clips = torch.stack([animate(picture, rng, motion=motion).frames for motion in motions])
    named = [encoder.motions[answer] for answer in encoder.classify_motion(clips).argmax(dim=1)]
    assert np.mean([name == motion for name, motion in zip(named, motions)]) > 0.7
    similarities = encoder.encode_clips(clips) @ encoder.encode_texts(["a red flag", "a blue fish"]).T
    assert (similarities[:, 0] > similarities[:, 1]).float().mean() > 0.8
