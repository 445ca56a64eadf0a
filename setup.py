"""Package definition; the version is read from the package without importing it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "fairseq_openvino" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"', INIT, re.MULTILINE)
README = ROOT / "README.md"

if VERSION is None:
    raise SystemExit('fairseq_openvino/__init__.py holds no line __version__ = "..."')

setup(
    name="fairseq-openvino",
    version=VERSION.group(1),
    description="Train speech-to-text models in Fairseq, run them on OpenVINO",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    author="The fairseq_openvino authors",
    python_requires=">=3.11",
    packages=find_packages(include=["fairseq_openvino*"]),
    package_data={
        "fairseq_openvino": ["py.typed", "export/whisper/vocabularies/*", "runtime/silero/*"]
    },
    entry_points={"console_scripts": ["fairseq-openvino = fairseq_openvino.cli:main"]},
    install_requires=[
        "msgspec",
        "numpy",
        "openvino>=2025.0",
        "sentencepiece",
        "soundfile>=0.12",  # its libsndfile decodes MP3 from 1.1 on
        "soxr",
        "kaldi-native-fbank",
    ],
    extras_require={
        "fairseq": [
            "torch>=2.10",
            "fairseq-fixed",
            "onnx>=1.21",
            "onnxruntime",
            "sacrebleu",
            "PyYAML",
        ],
        "media": ["av"],  # FFmpeg, for what libsndfile refuses
        "server": ["starlette", "uvicorn", "python-multipart"],
        "ray": ["ray[data,serve]>=2.60,<2.64"],  # jobs.ray says why not later
        "whisper": ["tokenizers"],
        "whisper-export": [
            "torch>=2.10",
            "transformers>=5",
            "peft",
            "tokenizers",
            "safetensors",
            "onnx>=1.21",
            "onnxruntime",
            "PyYAML",
        ],
        "quantize": ["nncf", "tqdm", "sacrebleu", "jiwer"],
        "eval": ["sacrebleu", "jiwer", "matplotlib"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "pysubs2",
            "ruff",
            "mypy",
            "types-PyYAML",
            "av",
            "ctranslate2",
            "numba",
            "tiktoken",
            "starlette",
            "uvicorn",
            "python-multipart",
            "more-itertools",  # of openai-whisper, which the tests need
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
