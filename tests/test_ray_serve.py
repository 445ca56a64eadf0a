"""The server on a real local Ray Serve: replicas answer alike, and one that is killed costs its requests only
(`make test-ray`)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import MICRO_WHISPER

if find_spec("ray") is None:
    pytest.skip("make test-ray", allow_module_level=True)

import psutil
import ray
from ray import serve
from test_ray import bundle
from test_server import ask

from fairseq_openvino import load_model
from fairseq_openvino.errors import OptionError
from fairseq_openvino.server.ray import deployment

PORT = 8123
CLIPS = sorted((MICRO_WHISPER / "clips").iterdir())[:8]
__all__ = ["bundle"]


@pytest.fixture
def served(bundle: Path) -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
    serve.start(http_options={"port": PORT})
    serve.run(deployment({"model": str(bundle), "replicas": "2", "threads": "1"}))
    yield
    serve.shutdown()
    ray.shutdown()


def replicas() -> list[psutil.Process]:
    every = psutil.Process().children(recursive=True)
    return [each for each in every if "ServeReplica" in " ".join(each.cmdline())]


def test_replicas_answer_and_one_may_be_killed(served: None, bundle: Path) -> None:
    model = load_model(bundle, threads=1)
    wanted = [model.transcribe(clip).text for clip in CLIPS]

    def texts() -> list[str]:
        answers = [ask(PORT, clip, model=bundle.name) for clip in CLIPS]
        return [json.loads(body)["text"] for status, body, _ in answers if status == 200]

    assert texts() == wanted
    assert len(replicas()) == 2
    os.kill(replicas()[0].pid, signal.SIGKILL)
    lost = len(CLIPS) - len(texts())
    assert lost <= 1
    assert texts() == wanted


@pytest.mark.parametrize("arguments", [{"model": "bundle", "replica": "4"}, {"replicas": "4"}])
def test_arguments_without_effect_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"in replica: .*model, replicas|in model: .*got none"):
        deployment(arguments)
