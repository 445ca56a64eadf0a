"""The application as a deployment of Ray Serve: replicas with a compiled model each.

serve run fairseq_openvino.server.ray:deployment model=BUNDLE replicas=4 threads=2
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from starlette.applications import Starlette

from fairseq_openvino.errors import invalid
from fairseq_openvino.loading import load_model
from fairseq_openvino.server.app import LANES, MAX_WAITING, application

ARGUMENTS = ("model", "replicas", "threads", "precision")


def deployment(arguments: dict[str, str]) -> Any:
    """What `serve run` deploys.

    Args:
        arguments: `model`, as in `load_model`; `replicas` (default 1); `threads` of each model, which are as
            many CPUs of the cluster (default 2); `precision` (default: the bundle's own).

    Raises:
        OptionError: there is another, or no `model`.
    """
    if unknown := arguments.keys() - ARGUMENTS:
        raise invalid("Serving", min(unknown), f"one of {', '.join(ARGUMENTS)}", "another name")
    if "model" not in arguments:
        raise invalid(
            "Serving", "model", "a bundle, or another source of a model", "none", "Give one"
        )
    model, threads = arguments["model"], int(arguments.get("threads", 2))
    load = partial(load_model, model, threads=threads, precision=arguments.get("precision"))

    def build() -> Starlette:
        """In a replica."""
        return application(load, Path(model).name)

    @serve.deployment(
        name="transcription", num_replicas=int(arguments.get("replicas", 1)),
        max_ongoing_requests=LANES, max_queued_requests=MAX_WAITING,
        ray_actor_options={"num_cpus": threads},
    )  # fmt: skip
    @serve.ingress(build)
    class Transcription:
        """A replica."""

    replicas: Any = Transcription
    return replicas.bind()
