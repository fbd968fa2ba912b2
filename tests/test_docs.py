"""Every snippet of README and docs runs: Python as it stands, commands through the parsers that will read them.

The commands of docs/training.md and docs/model.md are run one after the other, on models of some thousand parameters.
"""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from example_scripts import load_example
from tiny_models import TINY_UNET

from rdtf_diffusers import checkpoints, cli
from rdtf_diffusers.commands import generate
from rdtf_diffusers.training import PRESETS


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SPACE = ROOT / "examples" / "space" / "README.md"  # whose Python test_space.py runs
TRAINING, MODEL, STICKERS = (ROOT / "docs" / name for name in ("training.md", "model.md", "stickers.md"))
INSTALLS = (
    r'pytest|pip install -c constraints\.txt -e (\.|"\.\[(train|test|docs|space|all)\]")'
    r"|python -m pip wheel --no-deps -w examples/space \."
    r'|hf upload my-name/stickers examples/space \. --repo-type space --exclude "__pycache__/\*"'
)
# Where a script is given an argument twice, the last one holds.
SMALL = {
    "train_rdtf.py": "--pretrained_model_name_or_path base --resolution 16 --train_batch_size 1 --report_to none "
    "--gradient_accumulation_steps 1 --validation_inference_steps 1 --mixed_precision no --max_train_steps",
    "prepare_dataset.py": "--pretrained_model_name_or_path base --resolution 16 --min_motion 0 --min_colour_bits 0",
    "train_autoencoder.py": "--resolution 16 --block_out_channels 8 8 --train_batch_size 1 --max_train_steps 1 "
    "--mixed_precision no",
    "prepare_base.py": "--text_encoder words",
    "train_refiner.py": "--pretrained_model_name_or_path my-model --max_train_steps 1 --train_batch_size 1 "
    "--channels 32 --interpolator_channels 16 --mixed_precision no",
    "benchmarks/sampling.py": "--model my-model --count 1 --settings 1,1,1,0",
    "benchmarks/noise_levels.py": "--model my-model --count 2 --levels 10 999",
    "benchmarks/autoencoder.py": "--model my-model --resolution 16 --projections 16",
}


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(pages: list[Path]) -> list[str]:
    """All single commands, a line `a && b` counting as two, each once."""
    text = "".join(snippet for page in pages for snippet in snippets(page, "bash"))
    lines = re.sub(r"  +# .*", "", text.replace("\\\n", " ")).splitlines()
    return list(dict.fromkeys(command.strip() for line in lines for command in line.split("&&")))


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty working directory from which the repository's own folders can be reached; drawing takes two steps."""
    for name in ("docs", "examples", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    quick = checkpoints.generation_settings(checkpoints.demo_checkpoint()) | {"num_inference_steps": 2}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "generation_settings", lambda model: quick)
    monkeypatch.setattr(generate, "generation_settings", lambda model: quick)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python")], ids=lambda page: page.name)
def test_python_snippets_of_a_page_run_one_after_the_other(page, workplace):
    exec(compile("\n".join(snippets(page, "python")), page.name, "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("page", [*PAGES, SPACE], ids=lambda page: page.name)
def test_every_block_is_of_a_kind_that_a_test_looks_at(page):
    """What has no language shows what a command prints, or how a folder looks."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for kind, text in blocks:
        assert kind.partition(" ")[0] in ("python", "bash", ""), kind
        assert kind or not re.match(r"(python|pip|accelerate|rdtf-diffusers|hf|from|import) ", text), text


@pytest.mark.parametrize(
    "command", commands([*(page for page in PAGES if page not in (TRAINING, MODEL, STICKERS)), SPACE])
)
def test_commands(command, workplace):
    program, *arguments = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if program == "rdtf-diffusers":
        (workplace / "stickers").mkdir()
        (workplace / "stickers" / "dog.webp").symlink_to(ROOT / "docs" / "images" / "dog.webp")
        assert cli.main(arguments) == 0
        if arguments[0] == "generate":
            assert cli.build_parser().parse_args(arguments).output.stat().st_size > 0
    elif command == "python examples/space/app.py":
        load_example("space/app.py").install_package()
    elif program in ("accelerate", "python") and arguments[:2] != ["-m", "pip"]:
        script = next(word for word in arguments if word.startswith("examples/"))
        load_example(script.removeprefix("examples/")).parse_args(arguments[arguments.index(script) + 1 :])
    else:
        assert re.fullmatch(INSTALLS, command), f"nothing checks the command {command!r}"


def test_sticker_commands_one_after_the_other(workplace, capsys):
    for command in commands([STICKERS]):
        program, *arguments = shlex.split(command)
        code = cli.main(arguments)
        assert program == "rdtf-diffusers" and code == 0, command
    assert {"dog.webm", "dogs", "dog.png", "sheet.png"} <= {path.name for path in workplace.iterdir()}
    assert "Telegram video sticker: fine" in capsys.readouterr().out


def run_small(command: str) -> None:
    """Runs a command of docs/training.md or docs/model.md in this process, launchers apart, at the smallest size."""
    program, *arguments = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if program == "rdtf-diffusers":
        assert cli.main(arguments) == 0
        return
    place = next(i for i, word in enumerate(arguments) if word.startswith("examples/") and word.endswith(".py"))
    if program == "accelerate":
        launch = launch_command_parser().parse_args(arguments[1 : place + 1])
        assert launch.config_file is None or Path(launch.config_file).is_file()
    else:
        assert (program, place) == ("python", 0), f"nothing checks the command {command!r}"
    name = arguments[place].removeprefix("examples/")
    if name == "benchmarks/training.py":  # test_benchmarks.py runs it
        load_example(name).parse_args(arguments[place + 1 :])
        return
    small = SMALL[name].split()
    if "--refiner_model_name_or_path" in arguments:  # which is small already
        small = [word for word in small if word not in ("--channels", "32", "--interpolator_channels", "16")]
    if name == "train_rdtf.py":
        small.append("2" if "--resume_from_checkpoint" in arguments else "1")
    assert not load_example(name).main([*arguments[place + 1 :], *small]), command


def test_training_commands_at_tiny_size(base, stickers, workplace, hub, monkeypatch, one_thread):
    for name, preset in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, dataclasses.replace(preset, unet=TINY_UNET))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    shutil.copytree(base, "base")
    shutil.copytree(base / "text_encoder", "words")
    shutil.copytree(base / "tokenizer", "words", dirs_exist_ok=True)
    shutil.copytree(stickers, "stickers")
    for kind in ("static", "animated"):
        for split in ("train", "validation"):
            shutil.copytree(stickers, workplace / "stickers" / kind / split)
    for command in commands([TRAINING, MODEL]):
        if not re.fullmatch(INSTALLS, command):
            run_small(command)
    (name,) = hub.repositories
    assert name.endswith("/stickers")
    for folder in ("my-model", "my-model-2", "my-paper-model", "my-node-model", "my-nodes-model"):
        assert (workplace / folder / "README.md").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_first_screen_has_the_two_commands_that_set_everything_up():
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25])
    assert "pip install -c constraints.txt -e . && rdtf-diffusers generate" in first_screen
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in first_screen
    assert "](docs/images/" in first_screen


def test_readme_is_short():
    """A screen, what most people want next, and links."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 80
