"""The package as it is installed: what it contains, what importing costs, and which versions fit."""

import importlib
import re
import runpy
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

import rdtf_diffusers


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/rdtf_diffusers"


@pytest.fixture
def metadata(monkeypatch) -> dict:
    """The arguments that setup.py gives to setuptools."""
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path("setup.py")
    return given


def test_import_and_help_load_none_of_the_heavy_libraries():
    code = """
import sys
import rdtf_diffusers.cli
for arguments in (["--help"], ["generate", "--help"]):
    try:
        rdtf_diffusers.cli.main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
heavy = {"torch", "diffusers", "transformers", "numpy", "PIL", "huggingface_hub"} & set(sys.modules)
assert not heavy, heavy
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "generate" in run.stdout and "--guidance-scale" in run.stdout


def test_public_names_resolve_and_unknown_ones_do_not():
    for name in rdtf_diffusers.__all__:
        assert getattr(rdtf_diffusers, name) is not None
    assert set(rdtf_diffusers.__all__) <= set(dir(rdtf_diffusers))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = rdtf_diffusers.Nothing


def test_wheel_holds_every_module_and_every_file_of_the_bundled_model(metadata):
    rooms = {str(path.parent.relative_to(ROOT / "src")).replace("/", ".") for path in PACKAGE.rglob("*.py")}
    assert rooms == set(metadata["packages"])
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in metadata["package_data"].items()
        for pattern in patterns
    ]
    files = [path.relative_to(ROOT / "src").as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    data = [file for file in files if not file.endswith((".py", ".pyc"))]
    assert "rdtf_diffusers/py.typed" in data
    assert any(file.endswith("tiny/model_index.json") for file in data)
    left_out = [file for file in data if not any(fnmatch(file, pattern) for pattern in patterns)]
    assert not left_out


def test_version_stands_in_one_place(metadata):
    assert metadata["version"] == rdtf_diffusers.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])


def test_console_script_and_extras(metadata):
    (script,) = metadata["entry_points"]["console_scripts"]
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "rdtf-diffusers" and module == "rdtf_diffusers.cli"
    assert callable(getattr(importlib.import_module(module), function))
    extras = metadata["extras_require"]
    assert set(extras) == {"train", "test", "docs", "space", "lottie", "vision", "all"}
    assert set(extras["train"]) <= set(extras["test"])
    others = [extra for name, extra in extras.items() if name not in ("all", "vision")]
    assert set(extras["all"]) == {requirement for extra in others for requirement in extra}
    assert not set(extras["vision"]) & set(extras["all"])  # its torchvision has to match torch's build


def test_constraints_pin_every_requirement_within_its_range(metadata):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"  # no local tag: one file for CPU, CUDA and macOS
    wanted = [*metadata["install_requires"], *metadata["extras_require"]["all"]]
    for requirement in map(Requirement, wanted):
        version = pins[requirement.name.replace("_", "-")]
        assert version in requirement.specifier, f"{requirement} but {version} is pinned"
