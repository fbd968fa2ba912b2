"""Package metadata of rdtf_diffusers; the version is read from the package's source, which is not imported."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / "src/rdtf_diffusers/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
).group(1)

TRAIN = [
    "datasets>=4.0",
    "jinja2>=3.1",
    "matplotlib>=3.10",
    "peft>=0.19",
    "pyyaml>=6",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "tensorboard>=2.16",
    "torchmetrics>=1.4",
]
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"]
SPACE = ["gradio>=6.31"]
LOTTIE = ["rlottie-python>=1.3.6"]  # LGPL
VISION = ["timm>=1.0", "torchvision"]  # never part of `test` or `all`: torchvision has to match torch's build
TEST = [
    *TRAIN,
    *LOTTIE,
    *SPACE,
    "playwright>=1.50",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
    "setuptools>=77",
]

setup(
    name="rdtf_diffusers",
    version=VERSION,
    description="Animated stickers from text and pictures: the RDTF method (arXiv 2503.17735) for diffusers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["diffusers", "animated stickers", "video generation", "image to video", "frame interpolation"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "rdtf_diffusers": ["py.typed"],
        "rdtf_diffusers.checkpoints": ["**/*.json", "**/*.safetensors", "**/*.txt", "**/*.md"],
    },
    install_requires=[
        "accelerate>=1.10",
        "av>=18",
        "diffusers>=0.42,<1",
        "huggingface_hub>=1.32,<3",
        "numpy>=1.26",
        "pillow>=11",
        "safetensors>=0.8",
        "torch>=2.8",
        "tqdm>=4.66",
        "transformers>=5.6,<6",
    ],
    extras_require={
        "train": TRAIN,
        "test": TEST,
        "docs": DOCS,
        "space": SPACE,
        "lottie": LOTTIE,
        "vision": VISION,
        "all": [*TEST, *DOCS],
    },
    entry_points={"console_scripts": ["rdtf-diffusers = rdtf_diffusers.cli:main"]},
)
