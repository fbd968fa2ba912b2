"""Every snippet of README and docs runs: Python as it stands, commands through the parsers that will read them."""

import re
import shlex
from pathlib import Path

import pytest
from example_scripts import load_example

from rdtf_diffusers import checkpoints, cli


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """All single commands, a line `a && b` counting as two, each once."""
    text = "".join(snippet for page in PAGES for snippet in snippets(page, "bash"))
    lines = text.replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(command.strip() for line in lines for command in line.split("&&")))


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty working directory from which the repository's own folders can be reached; drawing takes two steps."""
    for name in ("docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    quick = checkpoints.generation_settings(checkpoints.demo_checkpoint()) | {"num_inference_steps": 2}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "generation_settings", lambda model: quick)
    monkeypatch.setattr(cli, "generation_settings", lambda model: quick)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python")], ids=lambda page: page.name)
def test_python_snippets_of_a_page_run_one_after_the_other(page, workplace):
    exec(compile("\n".join(snippets(page, "python")), page.name, "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("command", commands())
def test_commands(command, workplace):
    program, *arguments = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if program == "rdtf-diffusers":
        (workplace / "stickers").mkdir()
        (workplace / "stickers" / "dog.webp").symlink_to(ROOT / "docs" / "images" / "dog.webp")
        assert cli.main(arguments) == 0
        if arguments[0] == "generate":
            assert cli.build_parser().parse_args(arguments).output.stat().st_size > 0
    elif program in ("accelerate", "python"):
        script = next(word for word in arguments if word.startswith("examples/"))
        load_example(script.removeprefix("examples/")).parse_args(arguments[arguments.index(script) + 1 :])
    else:
        allowed = r'pytest|pip install -c constraints\.txt -e (\.|"\.\[(train|test|docs|space|all)\]")'
        assert re.fullmatch(allowed, command), f"nothing checks the command {command!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_first_screen_has_the_two_commands_that_set_everything_up():
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25])
    assert "pip install -c constraints.txt -e . && rdtf-diffusers generate" in first_screen
    assert 'pip install -c constraints.txt -e ".[test]" && pytest' in first_screen
    assert "](docs/images/" in first_screen
