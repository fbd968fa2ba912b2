"""CLIPSIM of tiny networks against the embeddings taken by hand, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import make_clip_tokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from rdtf_diffusers.metrics import similarity as similarity_module
from rdtf_diffusers.metrics.similarity import load_text_similarity


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_VISION = {**TINY, "image_size": 16, "patch_size": 8}
TINY_TEXT = {**TINY, "vocab_size": 54, "max_position_embeddings": 12}
TEXTS = ["a dog", "a cat that jumps and sleeps and jumps and sleeps", ""]


def save_clip(folder) -> CLIPModel:
    torch.manual_seed(0)
    text = {**TINY_TEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=TINY_VISION, projection_dim=6))
    size = {"height": 16, "width": 16}
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    make_clip_tokenizer().save_pretrained(folder)
    return model.eval()


def save_siglip(folder) -> SiglipModel:
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config={**TINY_TEXT, "pad_token_id": 1}, vision_config=TINY_VISION))
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    make_clip_tokenizer().save_pretrained(folder)
    return model.eval()


def clips(count: int) -> torch.Tensor:
    """Opaque clips (B, 4, 4, 16, 16) of noise."""
    pixels = torch.rand(count, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels[:, :, 3] = 1
    return pixels


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_the_mean_over_frames_of_the_cosine(save, tmp_path):
    model = save(tmp_path)
    similarity = load_text_similarity(f"clip:{tmp_path}")
    assert similarity.name == f"CLIPSIM ({tmp_path.name})"
    batch, tokenizer = clips(3), make_clip_tokenizer()
    found = similarity(batch, TEXTS)
    assert found.shape == (3,) and found.dtype == torch.float32
    for number, text in enumerate(TEXTS):
        tokens = tokenizer(text, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
        with torch.inference_mode():
            words = model.get_text_features(**tokens).pooler_output
            pictures = model.get_image_features(similarity.frames.prepare(batch[number, None])).pooler_output
        torch.testing.assert_close(found[number], F.cosine_similarity(words, pictures).mean())


def test_padding_and_batches_do_not_change_it(tmp_path):
    model = save_clip(tmp_path)
    similarity = load_text_similarity(f"clip:{tmp_path}")
    batch = clips(3)
    alone = torch.cat([similarity(batch[i : i + 1], TEXTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(similarity(batch, TEXTS), alone)
    short = make_clip_tokenizer()("a dog", return_tensors="pt")  # not padded, as CLIP may be used
    with torch.inference_mode():
        words = model.get_text_features(**short).pooler_output
    pictures = similarity.frames.embed_frames(batch[:1])[0]
    torch.testing.assert_close(alone[0], F.cosine_similarity(words, pictures).mean())


def test_its_own_text_fits_better_once_embeddings_agree(tmp_path, monkeypatch):
    """With pictures whose embeddings are those of their texts, the cosine is 1, and less with another's."""
    save_clip(tmp_path)
    similarity = load_text_similarity(f"clip:{tmp_path}")
    tokens = similarity.tokenizer(TEXTS[:2], padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    words = similarity.frames.model.get_text_features(**tokens).pooler_output.detach()
    monkeypatch.setattr(similarity.frames, "embed_frames", lambda batch: 3 * words[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(similarity(clips(2), TEXTS[:2]), torch.ones(2))
    assert (similarity(clips(2), TEXTS[1::-1]) < 0.999).all()


def test_sticker_similarity_is_that_of_whole_clips(monkeypatch):
    class Encoder:
        def to(self, device):
            return self

        def encode_clips(self, batch):
            return F.normalize(torch.arange(1.0, 1 + 2 * len(batch)).view(-1, 2), dim=-1)

        def encode_texts(self, texts):
            return torch.tensor([[1.0, 0.0]]).expand(len(texts), -1)

    asked = []
    monkeypatch.setattr(similarity_module, "load_sticker_encoder", lambda folder: asked.append(folder) or Encoder())
    similarity = load_text_similarity("sticker")
    assert similarity.name == "sticker-CLIP (bundled encoder; in-domain proxy)"
    assert similarity(clips(2), TEXTS[:2]).tolist() == pytest.approx([1 / 5**0.5, 3 / 5])
    assert load_text_similarity("sticker:runs/mine").name == "sticker-CLIP (runs/mine; in-domain proxy)"
    assert asked == [None, "runs/mine"]
    with pytest.raises(ValueError, match="one text for each of 2 clips"):
        similarity(clips(2), TEXTS)


def test_refuses_what_is_no_text_network(tmp_path):
    folder = tmp_path / "vit"
    ViTModel(ViTConfig(**TINY_VISION)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    with pytest.raises(ValueError, match="is ViTModel, which has no text side as CLIP has"):
        load_text_similarity(f"clip:{folder}")
    with pytest.raises(ValueError, match=r"`spec` 'clip:.*empty' cannot be loaded: [^\n]+$"):
        load_text_similarity(f"clip:{tmp_path / 'empty'}")
    for spec in ("clip", "clip:", "siglip:x", ""):
        with pytest.raises(ValueError, match='`spec` must be "clip:ID" or'):
            load_text_similarity(spec)


def test_refuses_texts_that_do_not_match_the_clips(tmp_path):
    save_clip(tmp_path)
    similarity = load_text_similarity(f"clip:{tmp_path}")
    for texts in ("a dog", ["a dog"], TEXTS):
        with pytest.raises(ValueError, match="one text for each of 2 clips"):
            similarity(clips(2), texts)
