"""Components of a sticker pipeline with a few thousand random weights each, for the tests."""

import string

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel


TEXT_WIDTH = 16
SECOND_TEXT_WIDTH = 12


TINY_UNET = {  # a preset of the training script
    "block_out_channels": (16, 16),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "sti_num_heads": 1,
    "sti_head_dim": 8,
}


def make_unet(**config) -> UNetDiscreteFrameModel:
    torch.manual_seed(0)
    defaults = {
        "sample_size": 4,
        "in_channels": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": TEXT_WIDTH,
        "second_text_dim": None,
        "norm_num_groups": 4,
        "sti_num_heads": 2,
        "sti_head_dim": 4,
    }
    unet = UNetDiscreteFrameModel(**(defaults | config)).eval()
    for name, parameter in unet.named_parameters():  # every layer speaks from the start
        if name.endswith("semantic_weight"):
            torch.nn.init.constant_(parameter, 0.5)
    return unet


def make_vae(channels: int = 4, latent_channels: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()


def make_clip_tokenizer() -> CLIPTokenizer:
    pieces = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    pieces += [f"{letter}</w>" for letter in string.ascii_lowercase]
    return CLIPTokenizer({piece: i for i, piece in enumerate(pieces)}, [], model_max_length=20)


def make_clip_text_encoder() -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


def make_bert_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "jumps", "sleeps"]
    return BertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=20)


def make_t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer([*pieces, *((letter, -3.0) for letter in string.ascii_lowercase)], extra_ids=0)


def make_t5_encoder() -> T5EncoderModel:
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=32, d_model=SECOND_TEXT_WIDTH, d_kv=6, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return T5EncoderModel(config).eval()


def make_components(**components) -> dict:
    """All that the pipeline needs; `components` replace the usual ones."""
    usual = {
        "vae": make_vae,
        "text_encoder": make_clip_text_encoder,
        "tokenizer": make_clip_tokenizer,
        "unet": make_unet,
        "scheduler": lambda: DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
    }
    return {name: make() for name, make in usual.items() if name not in components} | components


def make_pipeline(**components) -> StickerGenerationPipeline:
    pipe = StickerGenerationPipeline(**make_components(**components))
    pipe.set_progress_bar_config(disable=True)
    return pipe
