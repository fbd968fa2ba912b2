"""Cards and uploads, against a Hub on this machine."""

import ast
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig
from PIL import Image
from tiny_models import make_pipeline, make_unet

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel, baselines
from rdtf_diffusers.utils import hub as hub_module
from rdtf_diffusers.utils.hub import copy_attribution, environment, model_card, public_name, push_to_hub


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


def test_objects_are_pushed_with_a_card(hub, tmp_path):
    push_to_hub(make_pipeline(), "me/pipe", token="hf_test")
    assert b"from_pretrained('me/pipe')" in hub.repositories["me/pipe"]["README.md"]
    assert hub.visibility is None
    push_to_hub(make_unet(), "me/unet", token="hf_test")
    card = hub.repositories["me/unet"]["README.md"].decode()
    assert "UNetDiscreteFrameModel.from_pretrained('me/unet')" in card and "pipeline_tag" not in card
    assert isinstance(UNetDiscreteFrameModel.from_pretrained("me/unet", cache_dir=tmp_path), UNetDiscreteFrameModel)


ADAPTERS = {
    "I2VAdapterModel": baselines.I2VAdapterConfig(),
    "SimDAModel": baselines.SimDAConfig(),
    "CustomizeAVideoModel": baselines.CustomizeAVideoConfig(),
}


def test_adapters_are_pushed_with_a_card_and_loaded_by_another_process(hub, tmp_path):
    push_to_hub(make_pipeline(), "me/base", token="hf_test")
    pipe = StickerGenerationPipeline.from_pretrained("me/base", cache_dir=tmp_path / "cache")
    expected = {}
    for name, config in ADAPTERS.items():
        torch.manual_seed(0)
        adapter = getattr(baselines, name)(pipe.unet, config)
        for weight in adapter.trainable_parameters():
            torch.nn.init.normal_(weight, std=0.3)
        push_to_hub(adapter, f"me/{name}", token="hf_test")
        expected[name] = {key: weight.detach() for key, weight in adapter.named_weights()}
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
    expected["snippet"] = snippet(card).replace("sticker.webp", f"{tmp_path}/sticker.webp")
    torch.save(expected, tmp_path / "expected.pt")
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-c", LOAD_ADAPTERS, str(tmp_path / "expected.pt")]
    subprocess.run(command, env=inherited | environment, check=True, timeout=300)
    assert Image.open(tmp_path / "sticker.webp").n_frames > 1


LOAD_ADAPTERS = """
import sys
import torch
from rdtf_diffusers import StickerGenerationPipeline, baselines

expected = torch.load(sys.argv[1])
code = expected.pop("snippet")
pipe = StickerGenerationPipeline.from_pretrained("me/base")
for name, weights in expected.items():
    adapter = getattr(baselines, name).from_pretrained(pipe.unet, f"me/{name}", token="hf_test")
    loaded = dict(adapter.named_weights())
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weight) for key, weight in weights.items())
    adapter.unload()
exec(code.replace(").frames", ", num_inference_steps=2).frames"))
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
    with pytest.raises(ValueError, match="a/b/c"):
        push_to_hub(folder, "a/b/c", token="hf_test")
    assert not hub.repositories
