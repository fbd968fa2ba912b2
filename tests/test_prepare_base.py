"""Pruning a text encoder: what is kept gives the same embeddings as before, and every word can still be spelled."""

import json
import string

import torch
from diffusers import AutoencoderKL
from example_scripts import load_example
from transformers import BertConfig, BertModel, BertTokenizer

from rdtf_diffusers import StickerGenerationPipeline


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
WORDS = ["the", "jumping", "zebra", "volcano", "unused", "ball", "red", "and", "while"]


def test_pruned_encoder_equals_the_original_on_what_it_keeps(tmp_path, capsys):
    torch.manual_seed(0)
    pieces = [*SPECIAL, *WORDS, *LETTERS]
    tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    original = BertModel(BertConfig(vocab_size=len(pieces), **sizes)).eval()
    original.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    AutoencoderKL(in_channels=4, out_channels=4, block_out_channels=(4,), norm_num_groups=2).save_pretrained(
        tmp_path / "vae"
    )
    rows = [{"text": "red ball", "keywords": ["volcano", "zebra", "volcano"]}, {"text": "the red ball"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    script = load_example("prepare_base.py")
    kept = len(SPECIAL) + len(LETTERS) + 6  # red, ball, the; jumping, and, while from the motions
    folders = ["--vae", str(tmp_path / "vae"), "--text_encoder", str(tmp_path / "text")]
    options = ["--caption_files", str(tmp_path / "metadata.jsonl"), "--num_layers", "2", "--max_length", "12"]
    size = ["--vocab_size", str(kept + 1), "--output_dir", str(tmp_path / "base")]
    assert script.main([*folders, *options, *size]) == 0

    assert f"{kept + 1} word pieces, 2 layers" in capsys.readouterr().out
    assert script.main([*folders, *options, "--vocab_size", "9", "--output_dir", str(tmp_path / "small")]) == 2
    assert "`vocab_size` must be at least 57" in capsys.readouterr().err
    base = StickerGenerationPipeline.from_pretrained(tmp_path / "base", unet=None, dtype=torch.float32)
    assert base.scheduler.config.prediction_type == "v_prediction"
    vocabulary = set(base.tokenizer.get_vocab())
    assert {"red", "ball", "the", "jumping", "volcano"} <= vocabulary
    assert not {"unused", "zebra"} & vocabulary  # volcano is the more frequent keyword
    assert base.tokenizer.tokenize("zebra") == ["z", "##e", "##b", "##r", "##a"]
    with torch.no_grad():
        before = original(**tokenizer("the red ball jumping", return_tensors="pt")).last_hidden_state
        after = base.text_encoder(**base.tokenizer("the red ball jumping", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(after, before)
