"""Cards and uploads, against a Hub on this machine."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from example_scripts import EXAMPLES, load_example
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from peft import LoraConfig
from PIL import Image
from tiny_models import make_pipeline, make_unet

from rdtf_diffusers import StickerGenerationPipeline, baselines, demo_checkpoint
from rdtf_diffusers.checkpoints import generation_settings
from rdtf_diffusers.data import card as card_module
from rdtf_diffusers.data.card import dataset_card
from rdtf_diffusers.data.rows import load_rows
from rdtf_diffusers.utils import hub as hub_module
from rdtf_diffusers.utils.hub import (
    add_evaluation,
    copy_attribution,
    environment,
    make_repository,
    model_card,
    public_name,
    push_to_hub,
    with_measures,
)


WILD = 'a "dog" | <b>jumps</b>\n--- ```# [x](y) {{ 1 + 1 }} `rm` it\'s: &'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a training run leaves it, on a path with a space."""
    folder = tmp_path_factory.mktemp("the runs") / "my-model"
    make_pipeline().save_pretrained(folder)
    (folder / "generation.json").write_text('{"num_inference_steps": 2, "guidance_scale": 3.0}')
    Image.new("RGBA", (8, 8), "red").save(folder / "preview.webp")
    Image.new("RGB", (8, 8), "blue").save(folder / "losses.png")
    for name in (
        "checkpoint-5/model.safetensors",
        "unfinished-6/a",
        "logs/events",
        "validation/step-5/0.webp",
        "unet/.DS_Store",
        ".a/b",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"scratch")
    return folder


def metadata(card) -> dict:
    text = str(card)
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("\n---\n")[0])


def snippet(card) -> str:
    return re.search(r"```python\n(.*?)\n```\n", card.text, re.DOTALL)[1]


# --- cards


def test_the_least_card(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "bare")
    card = model_card(tmp_path / "bare")
    assert metadata(card) == {
        "library_name": "diffusers",
        "pipeline_tag": "image-text-to-video",
        "tags": ["stickers", "animation", "rdtf"],
    }
    assert "# bare" in card.text and "StickerGenerationPipeline.from_pretrained('bare')" in card.text
    assert "Whoever publishes" in card.text and "## Training" not in card.text and "![" not in card.text
    assert not re.search(r"\n{3}", card.text) and str(tmp_path) not in str(card)


def test_everything_on_a_card(folder, tmp_path):
    data = tmp_path / "private place" / "cats" / "train"
    data.mkdir(parents=True)
    (data.parent / "ATTRIBUTION.md").write_text("Cats by nobody, CC0.")
    copy_attribution([data, data.parent, "me/stickers", tmp_path], folder)
    assert (folder / "ATTRIBUTION.md").read_text() == "Cats by nobody, CC0.\n"
    card = model_card(
        folder,
        repo_id="me/my-model",
        base_models=["stabilityai/sd-vae-ft-mse", tmp_path / "base"],
        data=[data, "me/stickers"],
        license="apache-2.0",
        training={"steps": 50_000, "cache": str(data), "task_weights": {"it2v": 2.0}, "lr|x": 1e-5, "empty": None}
        | environment(2),
        final_losses={"i2v": 0.31234, "t2v": 0.4},
    )
    assert metadata(card) == {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "image-text-to-video",
        "tags": ["stickers", "animation", "rdtf"],
        "base_model": ["stabilityai/sd-vae-ft-mse"],
        "datasets": ["me/stickers"],
    }
    for part in [
        "\n# my-model\n",
        "](preview.webp)",
        "\n| | |\n|---|---|\n| parts not trained | stabilityai/sd-vae-ft-mse, base |\n| steps | 50,000 |\n",
        "\n| cache | cats/train |\n| task\\_weights | it2v=2.0 |\n| lr\\|x | 1e-05 |\n| hardware | ",
        "\n| i2v | t2v |\n|---|---|\n| 0.312 | 0.400 |\n",
        "![losses.png](losses.png)",
        "Trained on cats/train, [me/stickers](https://huggingface.co/datasets/me/stickers).",
        "[ATTRIBUTION.md](ATTRIBUTION.md) names",
    ]:
        assert part in str(card), part
    assert "private place" not in str(card) and str(tmp_path) not in str(card) and "empty" not in str(card)
    assert "No licence has been chosen" not in str(card) and not re.search(r"\n{3}", card.text)
    (folder / "ATTRIBUTION.md").unlink()


def test_a_wild_prompt_stays_text(folder):
    card = model_card(folder, prompt=WILD)
    alt, code = re.search(r"!\[(.*)\]\(preview.webp\)", card.text)[1], snippet(card)
    assert not re.search(r"(?<!\\)[`<>\[\]|{}*]|\n", alt) and "&amp;" in alt and "{{ 1 + 1 }}" in code
    assert metadata(card)["tags"] == ["stickers", "animation", "rdtf"]
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert WILD in strings


def test_the_snippet_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    code = snippet(model_card(folder)).replace("sticker.webp", f"{tmp_path}/sticker.webp")
    exec(code, {})
    assert Image.open(tmp_path / "sticker.webp").n_frames > 1


def test_paths_become_names(tmp_path, monkeypatch):
    (tmp_path / "here" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert [public_name(x) for x in ("here/there", "me/there", tmp_path, ".", "../x/")] == [
        "there",
        "me/there",
        *[tmp_path.name] * 2,
        "x",
    ]


def test_a_folder_without_a_model_has_no_card(tmp_path):
    with pytest.raises(ValueError, match="must hold a pipeline or a model of diffusers, or an adapter"):
        model_card(tmp_path)


def test_a_lora_of_another_kind_has_no_card(tmp_path):
    LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another kind"):
        model_card(tmp_path)


# --- figures on a card


def figures(**settings) -> list[EvalResult]:
    names = {"task_type": "image-text-to-video", "dataset_type": "me/balls", "dataset_name": "balls"}
    values = {"psnr": 17.25, "known_frame_error": 0.0, "ssim": -1e-7}
    return [
        EvalResult(metric_type=name, metric_value=value, metric_args=settings | {"n": 4}, **names)
        for name, value in values.items()
    ]


@pytest.fixture
def evaluation(tmp_path):
    """What an evaluation of two models leaves for cards."""
    models = {"my-model": figures(seeds=3), "another: one": figures(seeds=1)}
    index = [entry for name, found in models.items() for entry in eval_results_to_model_index(name, found)]
    (tmp_path / "model-index.yml").write_text(yaml.safe_dump({"model-index": index}))
    return tmp_path


def test_figures_are_put_on_a_card(folder, evaluation, hub):
    model_card(folder, license="mit", data=["me/stickers"]).save(folder / "README.md")
    before = ModelCard.load(folder / "README.md")
    for file, name, seeds in ((evaluation / "model-index.yml", "another: one", 1), (evaluation, None, 3)):
        add_evaluation(folder, file, name)  # the second takes the place of the first
        card = ModelCard.load(folder / "README.md")
        assert (card.data.model_name, card.data.eval_results) == (name or "my-model", figures(seeds=seeds))
    assert card.text == before.text and metadata(before).items() <= metadata(card).items()
    push_to_hub(folder, "me/sticker", token="hf_test")  # the Hub finds nothing wrong with it
    pushed = ModelCard(hub.repositories["me/sticker"]["README.md"].decode()).data
    assert (pushed.library_name, pushed.pipeline_tag) == ("diffusers", "image-text-to-video")
    assert pushed.eval_results == figures(seeds=3)


def test_some_figures_are_put_on_a_card(folder, evaluation):
    model_card(folder).save(folder / "README.md")
    add_evaluation(folder, evaluation, measures=["ssim", "psnr"])
    found = ModelCard.load(folder / "README.md").data.eval_results
    assert [one.metric_type for one in found] == ["psnr", "ssim"]
    with pytest.raises(ValueError, match="must be of known_frame_error, psnr, ssim; got frechet"):
        add_evaluation(folder, evaluation, measures=["psnr", "frechet"])


def test_a_measure_stands_for_those_below_it():
    metrics = [{"type": name} for name in ("frechet/sticker", "frechet/i3d", "psnr")]
    entry = {"name": "m", "results": [{"metrics": metrics}, {"metrics": metrics[2:]}]}
    assert with_measures(entry, ["frechet"]) == {"name": "m", "results": [{"metrics": metrics[:2]}]}
    assert with_measures(entry, ["frechet/i3d"]) == {"name": "m", "results": [{"metrics": metrics[1:2]}]}


def test_figures_of_nobody_are_refused(folder, evaluation, tmp_path):
    model_card(folder).save(folder / "README.md")
    before = (folder / "README.md").read_bytes()
    with pytest.raises(ValueError, match=r"`name` must be a model of .*: my-model, another: one; got 'third'"):
        add_evaluation(folder, evaluation, "third")
    (tmp_path / "other.yml").write_text("a: 1")
    for nothing in ("nothing", "other.yml"):
        with pytest.raises(ValueError, match=r"`evaluation` must be a folder with model-index\.yml"):
            add_evaluation(folder, tmp_path / nothing)
    assert (folder / "README.md").read_bytes() == before
    with pytest.raises(ValueError, match=r"has no README\.md; save one with `model_card` first"):
        add_evaluation(tmp_path, evaluation)


# --- cards of data sets


HIDDEN = {".DS_Store", "test/._tube.webp"}


@pytest.fixture
def data(stickers, tmp_path):
    """Stickers whose names sound like splits, among them a folder `validation`, and hidden files."""
    folder = tmp_path / "my data"
    shutil.copytree(stickers, folder)
    rows = [json.loads(line) for line in (stickers / "metadata.jsonl").read_text().splitlines()]
    names = ["steam-train.webp", "test/tube.webp", "validation/stamp.webp", *(row["file_name"] for row in rows[3:])]
    for row, name in zip(rows, names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / row["file_name"]).rename(folder / name)
        row |= {"file_name": name, "keyframes": [0, 4, 7], "source": "balls"}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ATTRIBUTION.md").write_text("Balls by nobody, CC0.")
    for name in HIDDEN:
        (folder / name).write_bytes(b"")
    return folder


def test_the_card_of_stickers(data, monkeypatch):
    monkeypatch.setattr(card_module, "SAMPLE", 5)
    card = dataset_card(data, repo_id="me/balls", license="cc0-1.0")
    assert metadata(card) == {
        "license": "cc0-1.0",
        "task_categories": ["image-to-video", "text-to-video"],
        "tags": ["stickers", "animation", "image", "rdtf"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": ["metadata.jsonl", "**/*.webp"]}],
            }
        ],
    }
    for part in [
        "\n# balls\n\n![a red ball](steam-train.webp)\n\n6 stickers with captions",
        "rows = load_rows('me/balls')\n",
        "\n## Content\n\n| | |\n|---|---|\n| rows | 6 |\n| files read for what follows | 5 |\n| stills | ",
        "\n| frames of an animation | 8 to 8, median 8 |\n| duration | 1.00 to 1.00 s, median 1.00 s |\n",
        "\n| size | 16x16 to 16x16 pixels, median 16x16 |\n",
        "\n| columns | file\\_name, text, keyframes, source |\n",
        "\n## Licences\n\n[ATTRIBUTION.md](ATTRIBUTION.md) names the sources of the stickers and their licences.\n",
    ]:
        assert part in card.text, part
    assert str(data.parent) not in str(card) and not re.search(r"\n{3}", card.text)
    namespace = {}
    exec(snippet(card).replace("'me/balls'", repr(str(data))), namespace)
    assert namespace["animation"].frames.shape == (8, 16, 16, 4)


def test_the_card_of_splits(stickers, tmp_path):
    for split in ("train", "validation"):
        shutil.copytree(stickers, tmp_path / "balls" / split)
    card = dataset_card(tmp_path / "balls")
    ((data_files,),) = ([config["data_files"]] for config in metadata(card)["configs"])
    assert data_files[1] == {"split": "validation", "path": ["validation/metadata.jsonl", "validation/**/*.webp"]}
    assert "| rows | train=6, validation=6 |" in card.text and "](train/0.webp)" in card.text
    assert "Whoever publishes this data set has to name the sources of the stickers" in card.text
    assert "No licence has been chosen for the data set." in card.text


def rewrite(folder, change) -> None:
    """Changes the rows of a folder's metadata, each with its number."""
    file = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(change(row, number)) + "\n" for number, row in enumerate(rows)))


def test_what_others_could_not_load_has_no_card(stickers, tmp_path):
    make = partial(shutil.copytree, stickers)
    with pytest.raises(ValueError, match=r"`folder` must hold metadata\.jsonl, itself or in train, validation, test,"):
        dataset_card(tmp_path)
    rewrite(make(tmp_path / "mixed"), lambda row, number: row | {"ms": [1, 2] if number else 1})
    with pytest.raises(ValueError, match=r"reads only columns of one type: .*/ms"):
        dataset_card(tmp_path / "mixed")
    make(tmp_path / "splits" / "train")
    rewrite(make(tmp_path / "splits" / "test"), lambda row, number: row | {"more": 1})
    with pytest.raises(ValueError, match=r"needs train and test to have equal columns, not \['more'\]"):
        dataset_card(tmp_path / "splits")
    rewrite(make(tmp_path / "vsd2m"), lambda row, number: {"visual_path": row["file_name"], "eng_cap": row["text"]})
    with pytest.raises(ValueError, match="needs a column `file_name`, got "):
        dataset_card(tmp_path / "vsd2m")
    rewrite(make(tmp_path / "films"), lambda row, number: row | {"file_name": "a.webm"})
    with pytest.raises(ValueError, match=r"reads .webp, .*, not .webm"):
        dataset_card(tmp_path / "films")
    for file in make(tmp_path / "broken").glob("*.webp"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="No file of the data set can be read, 6 were tried"):
        dataset_card(tmp_path / "broken")


@pytest.fixture(scope="module")
def prepared(base, stickers, tmp_path_factory):
    """What examples/prepare_dataset.py leaves."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    words = ["--pretrained_model_name_or_path", base, "--train_data_dir", stickers, "--output_dir", folder]
    limits = ["--min_motion", 0, "--min_colour_bits", 0, "--motions_per_picture", 1, "--text_variants", 2]
    assert load_example("prepare_dataset.py").main([*map(str, words + limits), "--resolution", "16"]) == 0
    return folder


def test_the_card_of_prepared_data(prepared, tmp_path):
    card = dataset_card(prepared, repo_id="me/prepared")
    assert metadata(card)["configs"] == [{"config_name": "default", "data_files": "shards/*.parquet"}]
    for part in [
        "LatentClips(snapshot_download('me/prepared', repo_type=\"dataset\"))\n",
        "\n| clips in motion of a still | 1, of 8 frames |\n",
        "\n| rows | 6 of 6 stickers; dropped.jsonl says why not the others |\n",
        "\n| pixels | 16 x 16 |\n| latents | float16 bytes, \\(4, 8, 8\\) for each frame |\n",
        "\n| text | float16 bytes, \\(8, 16\\) for each of 2 variants |\n",
    ]:
        assert part in card.text, part
    assert str(prepared.parent) not in str(card)
    file = shutil.copytree(prepared, tmp_path / "still") / "preparation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"motions_per_picture": 0}))
    assert 'repo_type="dataset"), procedural_fraction=0)\n' in snippet(dataset_card(tmp_path / "still"))


# --- uploads


def test_a_folder_is_pushed_and_loaded_back(folder, hub, tmp_path):
    model_card(folder, repo_id="me/sticker").save(folder / "README.md")
    for _ in range(2):  # the second finds the repository and its large files
        url = push_to_hub(folder, "sticker", token="hf_test", private=True)
        assert url == f"{hub.url}/me/sticker" and hub.visibility == "private"
    files = hub.repositories["me/sticker"]
    assert {name.split("/")[0] for name in files} == {
        *("README.md", "generation.json", "losses.png", "model_index.json", "preview.webp"),
        *("scheduler", "text_encoder", "tokenizer", "unet", "vae"),
    }
    weights = files["unet/diffusion_pytorch_model.safetensors"]
    assert weights == (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    assert len(hub.uploads) == 3 and weights in hub.uploads.values()  # large files came through LFS
    loaded = StickerGenerationPipeline.from_pretrained("me/sticker", cache_dir=tmp_path / "cache")
    expected = make_unet().state_dict()
    for name, value in loaded.unet.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_objects_are_pushed_with_a_card(hub):
    push_to_hub(make_pipeline(), "me/pipe", token="hf_test")
    assert b"from_pretrained('me/pipe')" in hub.repositories["me/pipe"]["README.md"]
    assert hub.visibility is None
    push_to_hub(make_unet(), "me/unet", token="hf_test")
    card = hub.repositories["me/unet"]["README.md"].decode()
    assert "UNetDiscreteFrameModel.from_pretrained('me/unet')" in card
    assert metadata(card)["pipeline_tag"] == "image-text-to-video"


def test_objects_take_along_what_belongs_to_the_folder_they_came_from(hub):
    """As the bundled weights, whose sources have to be named wherever they go."""
    pipe = StickerGenerationPipeline.from_pretrained(demo_checkpoint())
    push_to_hub(pipe, "me/pipe", token="hf_test")
    push_to_hub(pipe.unet, "me/unet", token="hf_test")
    for name in ("pipe", "unet"):
        files = hub.repositories[f"me/{name}"]
        assert metadata(files["README.md"].decode())["license"] == "cc-by-4.0"
        for file in Path(demo_checkpoint()).glob("*/*-MIT.txt"):
            assert files[f"licences/{file.name}"] == file.read_bytes()
        assert b"](ATTRIBUTION.md)" in files["README.md"] and b"licences/" in files["ATTRIBUTION.md"]
    settings = json.loads(hub.repositories["me/pipe"]["generation.json"])
    assert settings == generation_settings(demo_checkpoint())


def test_repositories_are_made_beforehand(hub):
    names = [make_repository("mine", repo_type=kind, token="hf_test") for kind in ("model", "dataset")]
    assert names == ["me/mine"] * 2 and set(hub.repositories) == {"me/mine", "datasets/me/mine"}


ADAPTERS = {
    "I2VAdapterModel": baselines.I2VAdapterConfig(),
    "SimDAModel": baselines.SimDAConfig(),
    "CustomizeAVideoModel": baselines.CustomizeAVideoConfig(),
}


def page_snippets(kind: str) -> list[str]:
    """Python of docs/hub.md under a title; without one it needs no Hub and is run by test_docs.py."""
    page = (EXAMPLES.parent / "docs" / "hub.md").read_text(encoding="utf-8")
    return re.findall(rf"^```python{kind}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_the_page_publishes(hub, prepared, evaluation, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(EXAMPLES.parent / "docs")
    (tmp_path / "prepared").symlink_to(prepared)
    (tmp_path / "evaluation").symlink_to(evaluation)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    exec("".join(page_snippets("") + page_snippets(' title="with a token"')), {})
    names = {"me/my-model", "me/my-unet", "me/my-adapter", "datasets/me/stickers", "datasets/me/prepared"}
    assert set(hub.repositories) == names
    assert "model-index" in metadata(hub.repositories["me/my-model"]["README.md"].decode())


def test_a_fresh_process_loads_what_was_pushed(hub, data, prepared, tmp_path):
    push_to_hub(make_pipeline(), "me/base", token="hf_test")
    push_to_hub(make_unet(), "me/unet", token="hf_test")
    pipe = StickerGenerationPipeline.from_pretrained("me/base", cache_dir=tmp_path / "cache")
    expected = {"unet": make_unet().state_dict(), "adapters": {}}
    for name, config in ADAPTERS.items():
        torch.manual_seed(0)
        adapter = getattr(baselines, name)(pipe.unet, config)
        for weight in adapter.trainable_parameters():
            torch.nn.init.normal_(weight, std=0.3)
        push_to_hub(adapter, f"me/{name}", token="hf_test")
        expected["adapters"][name] = {key: weight.detach() for key, weight in adapter.named_weights()}
        adapter.unload()
        files = hub.repositories[f"me/{name}"]
        assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
        card = ModelCard(files["README.md"].decode())
        assert (card.data.library_name, card.data.base_model) == ("diffusers", ["me/base"])
        assert "base_model_relation: adapter" in str(card) and adapter.paper in card.text
        for line in (
            "pipe = StickerGenerationPipeline.from_pretrained('me/base')",
            f"{name}.from_pretrained(pipe.unet, ",
        ):
            assert line in snippet(card)
    expected["draw"] = snippet(card).replace("sticker.webp", f"{tmp_path}/sticker.webp")

    dataset_card(data, repo_id="me/balls").save(data / "README.md")
    url = push_to_hub(data, "balls", repo_type="dataset", token="hf_test", private=True)
    assert url == f"{hub.url}/datasets/me/balls" and hub.visibility == "private"
    published = {file.relative_to(data).as_posix() for file in data.rglob("*") if file.is_file()} - HIDDEN
    assert set(hub.repositories["datasets/me/balls"]) == published
    expected["texts"] = list(load_rows(data)["text"])
    push_to_hub(prepared, "me/prepared", repo_type="dataset", token="hf_test")
    expected["prepared"] = snippet(dataset_card(prepared, repo_id="me/prepared"))

    names = {"my-model": "base", "my-unet": "unet", "my-adapter": "SimDAModel", "stickers": "balls"}
    for name, pushed in names.items():  # as docs/hub.md calls them
        place = "datasets/me" if name == "stickers" else "me"
        hub.repositories[f"{place}/{name}"] = hub.repositories[f"{place}/{pushed}"]
    (expected["page"],) = page_snippets(' title="anywhere"')

    torch.save(expected, tmp_path / "expected.pt")
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "expected.pt")]
    subprocess.run(command, env=inherited | environment, check=True, timeout=300)
    assert Image.open(tmp_path / "sticker.webp").n_frames > 1


FRESH_PROCESS = """
import sys
from rdtf_diffusers import StickerGenerationPipeline

pipe = StickerGenerationPipeline.from_pretrained("me/base")  # before anything else of the package is imported
assert type(pipe.unet).__name__ == "UNetDiscreteFrameModel"

import torch
from rdtf_diffusers import UNetDiscreteFrameModel, baselines
from rdtf_diffusers.data.rows import load_rows, read_row

def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)

expected = torch.load(sys.argv[1])
assert same(pipe.unet.state_dict(), expected["unet"])
assert same(UNetDiscreteFrameModel.from_pretrained("me/unet").state_dict(), expected["unet"])
for name, weights in expected["adapters"].items():
    adapter = getattr(baselines, name).from_pretrained(pipe.unet, f"me/{name}", token="hf_test")
    assert same(dict(adapter.named_weights()), weights)
    adapter.unload()
exec(expected["draw"].replace(").frames", ", num_inference_steps=2).frames"))

rows = load_rows("me/balls")
assert list(rows["text"]) == expected["texts"] and rows[0]["keyframes"] == [0, 4, 7]
assert [len(read_row(row).frames) for row in rows] == [8] * 3 + [1] * 3
streamed = list(load_rows("me/balls", streaming=True))
assert [row["text"] for row in streamed] == expected["texts"]
assert [len(read_row(row).frames) for row in streamed] == [8] * 3 + [1] * 3
exec(expected["prepared"])
assert len(clips) == 6
exec(expected["page"])
assert len(animation.frames) == 8 and len(clips) == 6
"""


def test_the_card_of_an_adapter_whose_base_is_not_on_the_hub(tmp_path):
    baselines.SimDAModel(make_unet(), baselines.SimDAConfig()).save_pretrained(tmp_path / "mine")
    assert "base_model" not in metadata(model_card(tmp_path / "mine"))
    card = model_card(tmp_path / "mine", base_models=[tmp_path / "stickers"])
    assert "for the sticker model `stickers`" in card.text and "'stickers'" in snippet(card)
    assert str(tmp_path) not in str(card)


@pytest.mark.parametrize("refusal", [401, 403])
def test_a_refusal_is_one_line(folder, hub, refusal):
    hub.refusal = refusal
    with pytest.raises(OSError) as error:
        push_to_hub(folder, "me/sticker", token="hf_test")
    text = str(error.value)
    assert f"may not write there ({refusal})" in text and "\n" not in text and "hf_test" not in text
    assert f"is whole; later: hf upload me/sticker '{folder}' . --exclude 'checkpoint-*'" in text


def test_a_broken_connection_is_one_line(folder, hub):
    hub.__exit__()
    with pytest.raises(OSError, match=r"could not upload to http.*me/sticker: .*; .* is whole; later: hf upload"):
        push_to_hub(folder, "me/sticker", token="hf_test")


def test_advice_for_a_data_set_names_its_kind(data, hub):
    hub.refusal = 403
    with pytest.raises(
        OSError, match=r"to http.*/datasets/me/balls: .*hf upload me/balls .* --repo-type dataset --ex"
    ):
        push_to_hub(data, "me/balls", repo_type="dataset", token="hf_test")


def test_a_large_file_that_does_not_arrive_is_one_line(folder, hub, monkeypatch):
    monkeypatch.setattr("hub_server.HubHandler.do_PUT", lambda handler: handler.reply(status=403))
    with pytest.raises(OSError, match=r"may not write there \(403\)"):
        push_to_hub(folder, "me/sticker", token="hf_test")


def test_what_can_be_known_before_is_refused_before(folder, hub, monkeypatch):
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    with pytest.raises(ValueError, match=r"no token .* `hf auth login`.* is whole; later: hf upload"):
        push_to_hub(folder, "me/sticker")
    with pytest.raises(ValueError, match="must be a folder or an object"):
        push_to_hub(folder / "nothing", "me/sticker")
    with pytest.raises(
        ValueError, match="must be a folder for a `repo_type` of 'dataset', got UNetDiscreteFrameModel"
    ):
        push_to_hub(make_unet(), "me/sticker", repo_type="dataset", token="hf_test")
    with pytest.raises(ValueError, match="a/b/c"):
        push_to_hub(folder, "a/b/c", token="hf_test")
    assert not hub.repositories
