"""The models that come with the package, and the settings that suit a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path


SETTINGS_FILE = "generation.json"
SETTINGS = ("num_inference_steps", "guidance_scale", "image_guidance_scale", "guidance_stop", "eta")
CONTINUATION = "continuation_"  # before the name of a scale: its value where several frames are known
ALL_SETTINGS = (*SETTINGS, f"{CONTINUATION}guidance_scale", f"{CONTINUATION}image_guidance_scale")


def demo_checkpoint() -> str:
    """The folder of the bundled small model, for `StickerGenerationPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: if this installation came without it.
    """
    folder = Path(__file__).parent / "tiny"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"the bundled model is missing from {folder}; install rdtf_diffusers again")
    return str(folder)


def sticker_encoder_checkpoint() -> str:
    """The folder of the bundled sticker encoder, for `metrics.sticker_encoder.load_sticker_encoder`."""
    return str(Path(__file__).parent / "sticker_encoder")


def generation_settings(model: str | Path) -> dict[str, float]:
    """The arguments of the pipeline's call that suit a checkpoint, from its `generation.json`; {} where it has none.

        pipe("a dog jumping", **generation_settings(demo_checkpoint()))

    Args:
        model: a checkpoint's folder or the id of a repository on the Hub.

    Raises:
        ValueError: if the file holds anything but numbers for "num_inference_steps", "guidance_scale",
            "image_guidance_scale", "guidance_stop", "eta", "continuation_guidance_scale" and
            "continuation_image_guidance_scale".
        OSError: if the Hub cannot be reached and the cache does not know whether there is such a file.
    """
    if Path(model).is_dir():
        path = Path(model) / SETTINGS_FILE
        if not path.is_file():
            return {}
    else:
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(str(model), SETTINGS_FILE))
        except LocalEntryNotFoundError as error:
            if try_to_load_from_cache(str(model), SETTINGS_FILE) is _CACHED_NO_EXIST:
                return {}
            raise OSError(
                f"{model}: {SETTINGS_FILE} is not cached, and the Hub cannot be reached to tell whether there is one"
            ) from error
        except EntryNotFoundError:
            return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    numbers = isinstance(settings, dict) and all(isinstance(value, int | float) for value in settings.values())
    whole = numbers and isinstance(settings.get("num_inference_steps", 1), int)
    if not whole or not set(settings) <= set(ALL_SETTINGS):
        allowed = ", ".join(ALL_SETTINGS)
        raise ValueError(f"{path} must give numbers for {allowed} and nothing else, whole steps, not {settings}")
    return settings


def override_settings(settings: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Settings with some given anew; a given scale counts with several known frames, too."""
    replaced = {CONTINUATION + name for name in given}
    return {name: value for name, value in settings.items() if name not in replaced} | given
