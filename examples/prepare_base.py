"""Put together the frozen parts of a small sticker model: autoencoder, pruned text encoder, noise levels.

    python examples/prepare_base.py --vae vae --text_encoder sentence-transformers/all-MiniLM-L6-v2 \
        --caption_files stickers/static/train/metadata.jsonl stickers/animated/train/metadata.jsonl --output_dir base

The output is a pipeline folder without a UNet, for `--pretrained_model_name_or_path` of train_rdtf.py. The text
encoder is cut down, not trained: its first `--num_layers` transformer layers are kept (with 0 the static word
embeddings alone), and of the word pieces the special tokens, all single characters (so that every word can still be
spelled), those that captions and motion phrases use, then the keywords' by frequency, then everyday words. Printed is
how well similarities between captions survive.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoModel as DiffusersAutoModel
from diffusers import DDIMScheduler
from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizer

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.data.layers import LAYERS, NUMBERS, SIDES, SIZES
from rdtf_diffusers.data.procedural import MOTIONS, SPEEDS


# The paper's noise levels (RDTF, table 6), rescaled so that the last one is pure noise: with few sampling steps the
# network must learn to start from nothing (arXiv 2305.08891), which asks for velocities as targets.
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vae", required=True, help="Folder or Hub id of an autoencoder of diffusers.")
    parser.add_argument("--text_encoder", required=True, help="Folder or Hub id of a BERT sentence encoder.")
    parser.add_argument("--caption_files", nargs="+", required=True, help="metadata.jsonl files.")
    parser.add_argument("--caption_column", default="text")
    parser.add_argument("--keywords_column", default="keywords", help="Optional list of words; ignored where absent.")
    parser.add_argument("--num_layers", type=int, default=0)
    parser.add_argument("--vocab_size", type=int, default=3600)
    parser.add_argument("--max_length", type=int, default=32, help="Longest prompt in word pieces.")
    parser.add_argument("--output_dir", required=True)
    return parser.parse_args(input_args)


def motion_phrases() -> list[str]:
    """Every word with which procedural motions and layers describe themselves."""
    choices = [SPEEDS, *(group for motion in MOTIONS.values() for group in (motion.sides, motion.amounts) if group)]
    phrases = [phrase for group in (*choices, NUMBERS, SIZES, SIDES) for side in group for phrase in side]
    phrases += [verb for motion in MOTIONS.values() for verb in motion.verbs]
    phrases += [word for layer in LAYERS.values() for word in (*(layer.nouns or ()), *layer.phrases, *layer.colours)]
    return [*(phrase.replace("{}", "") for phrase in phrases), "and while a an"]


def count_pieces(args: argparse.Namespace, tokenizer) -> tuple[Counter, list[str]]:
    """Counts word pieces, those of captions far above those of keywords; returns them with all captions."""
    counts, captions = Counter(), motion_phrases()
    for path in args.caption_files:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            captions.append(row[args.caption_column])
            counts.update(tokenizer.tokenize(" ".join(row.get(args.keywords_column) or [])))
    for caption in captions:
        counts.update(dict.fromkeys(tokenizer.tokenize(caption), 1000000))
    return counts, captions


def choose_vocabulary(tokenizer, counts: Counter, size: int) -> list[str]:
    """Special tokens, all ASCII characters and their continuations, then pieces by count; in the tokenizer's order."""
    vocabulary = tokenizer.get_vocab()
    kept = set(tokenizer.all_special_tokens)
    kept |= {piece for piece in vocabulary if re.fullmatch(r"(##)?[!-~]", piece)}
    if len(kept) > size:
        raise ValueError(f"`vocab_size` must be at least {len(kept)}, for single characters alone, got {size}.")
    # a BERT vocabulary lists whole words by falling frequency: what is left goes to everyday words
    everyday = [piece for piece in sorted(vocabulary, key=vocabulary.get) if re.fullmatch(r"[a-z]{3,}", piece)]
    for piece in [*(piece for piece, _ in counts.most_common()), *everyday]:
        if len(kept) == size:
            break
        kept.add(piece)
    return sorted(kept, key=vocabulary.get)


def prune(model: BertModel, tokenizer, pieces: list[str], num_layers: int, max_length: int) -> BertModel:
    """A BERT with the first layers and the embeddings of `pieces`; everything else is copied unchanged."""
    config = type(model.config).from_dict(
        model.config.to_dict()
        | {
            "num_hidden_layers": num_layers,
            "vocab_size": len(pieces),
            "max_position_embeddings": max_length,
            "pad_token_id": pieces.index(tokenizer.pad_token),
        }
    )
    pruned = BertModel(config)
    weights = {name: weight for name, weight in model.state_dict().items() if name in pruned.state_dict()}
    rows = torch.tensor(tokenizer.convert_tokens_to_ids(pieces))
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][rows]
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][:max_length]
    pruned.load_state_dict(weights)
    return pruned.eval()


@torch.no_grad()
def embed(model: BertModel, tokenizer, sentences: list[str], max_length: int) -> torch.Tensor:
    """Mean-pooled, normalised sentence embeddings of shape (N, width)."""
    tokens = tokenizer(sentences, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    hidden_states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden_states * mask).sum(1) / mask.sum(1), dim=-1)


def prepare(args: argparse.Namespace) -> None:
    """Writes the pipeline folder and prints what became of the text encoder."""
    tokenizer = AutoTokenizer.from_pretrained(args.text_encoder)
    model = AutoModel.from_pretrained(args.text_encoder).eval()
    counts, captions = count_pieces(args, tokenizer)
    pieces = choose_vocabulary(tokenizer, counts, args.vocab_size)
    small = prune(model, tokenizer, pieces, args.num_layers, args.max_length)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    small_tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=args.max_length)
    vae = DiffusersAutoModel.from_pretrained(args.vae)
    pipeline = StickerGenerationPipeline(vae, small, small_tokenizer, unet=None, scheduler=DDIMScheduler(**SCHEDULER))
    pipeline.save_pretrained(args.output_dir)

    sample = captions[:: max(1, len(captions) // 500)]
    before = embed(model, tokenizer, sample, args.max_length)
    after = embed(small, small_tokenizer, sample, args.max_length)
    # two encoders have two spaces: what must survive is which captions are near each other
    correlation = torch.corrcoef(torch.stack([(before @ before.T).flatten(), (after @ after.T).flatten()]))[0, 1]
    parameters = sum(parameter.numel() for parameter in small.parameters())
    print(
        f"{len(pieces)} word pieces, {args.num_layers} layers, {parameters / 1e6:.2f} M parameters; "
        f"correlation of caption similarities with the full encoder: {correlation:.3f} (n = {len(sample)} captions)"
    )


def main(args: list[str] | None = None) -> int:
    """Prepares; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    parsed = parse_args(args)
    try:
        prepare(parsed)
    except (OSError, ValueError, KeyError) as error:
        print(f"prepare_base.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
