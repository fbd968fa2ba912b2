"""What several tests share: frozen parts of some thousand parameters, drawn stickers, and a Hub on this machine."""

import json
import os

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from hub_server import HubServer
from huggingface_hub import constants, hf_api
from PIL import Image, ImageDraw
from transformers import BertConfig, BertModel, BertTokenizer

from rdtf_diffusers import StickerGenerationPipeline


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "_", "a", "red", "blue", "ball", "moving", "##s"]


def pytest_configure(config):
    """Where several processes run tests, each has one thread, and so has what it starts: more wait for each other."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers, which start later


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A pipeline folder with everything but the UNet."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, model_max_length=8)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text_encoder = BertModel(BertConfig(vocab_size=len(WORDS), **sizes))
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    folder = tmp_path_factory.mktemp("base")
    StickerGenerationPipeline(vae, text_encoder, tokenizer, None, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stickers(tmp_path_factory):
    """Three animated balls and three still ones, with captions."""
    folder = tmp_path_factory.mktemp("stickers")
    rows = []
    for index, colour in enumerate(["red", "blue", "green"] * 2):
        frames = []
        for step in range(8):
            frame = Image.new("RGBA", (16, 16))
            ImageDraw.Draw(frame).ellipse((step, index, step + 7, index + 7), fill=colour)
            frames.append(frame)
        name = f"{index}.webp"
        rest = frames[1:] if index < 3 else []
        frames[0].save(folder / name, save_all=True, append_images=rest, duration=125, lossless=True)
        rows.append({"file_name": name, "text": f"a {colour} ball"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process takes for the real one."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        huggingface_hub.close_session()
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def one_thread():
    """Models of some thousand parameters gain nothing from more, and lose a lot where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
