"""Standalone, run by .venv-peers: one other engine; JSON requests on stdin, answers on stdout.

| request | answer                                                                              |
|---------|-------------------------------------------------------------------------------------|
| `load`  | seconds to the first two tokens without imports, precision, package versions        |
| `run`   | seconds, token ids (or their number and the text) of each clip, peak memory in MB    |

The protocol is that of `own_child`. Clips are float32 at 16 kHz, shape (clips, samples); time runs
from these samples to tokens, log-mel included.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 16000
FIRST_TOKENS = 2
MAX_ERROR_CHARACTERS = 300
PROMPT_TOKENS = 4
"""Start, language, task, no timestamps; CTranslate2 halves prompt and limit together."""
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}

Output = dict[str, Any]
Run = Callable[[np.ndarray, int, int], list[Output]]
"""(clips, samples), beam, tokens -> tokens and text of each clip."""


def load_transformers(settings: dict[str, Any]) -> tuple[Run, str, list[str]]:
    """PyTorch, in f32 or with bf16 weights."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(settings["threads"])
    kind = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    model: Any = WhisperForConditionalGeneration.from_pretrained(settings["source"], dtype=kind)
    processor = WhisperProcessor.from_pretrained(settings["source"])
    run = _generate(model.eval(), processor, kind)
    return run, f"weights and activations {settings['precision']}", ["torch", "transformers"]


def load_optimum(settings: dict[str, Any]) -> tuple[Run, str, list[str]]:
    """OpenVINO below transformers' generate."""
    import torch
    from optimum.intel import OVModelForSpeechSeq2Seq
    from transformers import WhisperProcessor

    torch.set_num_threads(settings["threads"])
    exact = EXACT if settings["precision"] == "f32" else {}
    model = OVModelForSpeechSeq2Seq.from_pretrained(
        settings["format"], ov_config=_openvino(settings) | exact, compile=True
    )
    processor = WhisperProcessor.from_pretrained(settings["source"])
    used = model.decoder.request.get_compiled_model()
    names = ["optimum-intel", "openvino", "transformers", "torch"]
    return _generate(model, processor, torch.float32), _in_use(used, settings), names


def _generate(model: Any, processor: Any, kind: Any) -> Run:
    """A run by `generate` of transformers."""
    import torch

    def run(clips: np.ndarray, beam: int, tokens: int) -> list[Output]:
        features = processor(
            list(clips), sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True
        )
        with torch.inference_mode():
            found = model.generate(
                features.input_features.to(kind), attention_mask=features.attention_mask,
                language="en", task="transcribe", return_timestamps=False, num_beams=beam,
                min_new_tokens=tokens, max_new_tokens=tokens,
            )  # fmt: skip
        return [{"tokens": row} for row in found.tolist()]

    return run


def load_genai(settings: dict[str, Any]) -> tuple[Run, str, list[str]]:
    """OpenVINO GenAI's pipeline in C++; one clip at a time."""
    import openvino
    import openvino_genai

    exact = EXACT if settings["precision"] == "f32" else {}
    options = _openvino(settings) | exact
    pipeline = openvino_genai.WhisperPipeline(settings["format"], "CPU", **options)

    def run(clips: np.ndarray, beam: int, tokens: int) -> list[Output]:
        outputs = []
        for clip in clips:
            config = pipeline.get_generation_config()
            config.language, config.task, config.return_timestamps = "<|en|>", "transcribe", False
            config.max_new_tokens, config.num_beams, config.ignore_eos = tokens, beam, beam == 1
            found = pipeline.generate(clip.tolist(), config)
            count = found.perf_metrics.get_num_generated_tokens()
            count = (count - 1) // beam + 1  # it counts each beam, but the first step once
            outputs.append({"count": count, "text": found.texts[0]})
        return outputs

    hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    weights = "weights int8, " if settings["precision"] == "int8" else ""
    precision = "f32, KV cache f32" if exact else f"{weights}{hint}, the CPU's default"
    return run, precision, ["openvino-genai", "openvino"]


def load_faster_whisper(settings: dict[str, Any]) -> tuple[Run, str, list[str]]:
    """CTranslate2; several clips through its batched pipeline, without temperature fallback."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    kind = {"f32": "float32", "int8": "int8"}[settings["precision"]]
    model = WhisperModel(
        settings["format"], device="cpu", compute_type=kind, cpu_threads=settings["threads"]
    )
    batched = BatchedInferencePipeline(model)
    plain: dict[str, Any] = {
        "language": "en", "task": "transcribe", "temperature": 0.0, "without_timestamps": True,
        "condition_on_previous_text": False, "no_speech_threshold": None, "vad_filter": False,
        "log_prob_threshold": None, "compression_ratio_threshold": None,
    }  # fmt: skip

    def run(clips: np.ndarray, beam: int, tokens: int) -> list[Output]:
        options = {**plain, "beam_size": beam, "max_new_tokens": 2 * tokens - PROMPT_TOKENS}
        if len(clips) == 1:
            segments, _ = model.transcribe(clips[0], **options)
        else:
            seconds = clips.shape[1] / RATE_HZ
            parts = [{"start": i * seconds, "end": (i + 1) * seconds} for i in range(len(clips))]
            segments, _ = batched.transcribe(
                clips.reshape(-1), clip_timestamps=parts, batch_size=len(clips), **options
            )
        return [{"tokens": segment.tokens} for segment in segments]

    return run, model.model.compute_type, ["faster-whisper", "ctranslate2"]


def load_whisper_cpp(settings: dict[str, Any]) -> tuple[Run, str, list[str]]:
    """whisper.cpp; one clip at a time, without temperature fallback."""
    import _pywhispercpp as library
    from pywhispercpp.model import Model

    options: dict[str, Any] = {
        "n_threads": settings["threads"], "language": "en", "no_timestamps": True,
        "single_segment": True, "temperature_inc": 0.0, "print_progress": False,
    }  # fmt: skip
    first = Model(settings["format"], params_sampling_strategy=0, **options)
    # The strategy belongs to the parameters: a second set of them shares the weights.
    kinds = library.whisper_sampling_strategy
    second = library.whisper_full_default_params(kinds.WHISPER_SAMPLING_BEAM_SEARCH)
    greedy, context = first._params, first._ctx

    def run(clips: np.ndarray, beam: int, tokens: int) -> list[Output]:
        first._params = greedy if beam == 1 else second
        if beam > 1:
            options["beam_search"] = {"beam_size": beam, "patience": -1.0}
        outputs = []
        for clip in clips:
            first.transcribe(clip, **options, max_tokens=tokens - 1)
            count = library.whisper_full_n_segments(context)
            outputs.append({"tokens": [
                library.whisper_full_get_token_id(context, i, j)
                for i in range(count) for j in range(library.whisper_full_n_tokens(context, i))
            ]})  # fmt: skip
        return outputs

    return run, f"weights {settings['precision']}, activations f32", ["pywhispercpp"]


def _openvino(settings: dict[str, Any]) -> dict[str, Any]:
    return {"INFERENCE_NUM_THREADS": settings["threads"], "CACHE_DIR": settings["cache"]}


def _in_use(compiled: Any, settings: dict[str, Any]) -> str:
    """As read back from the compiled decoder."""
    hint, cache = (compiled.get_property(name) for name in EXACT)
    weights = "weights int8, " if settings["precision"] == "int8" else ""
    return f"{weights}{hint.get_type_name()}, KV cache {cache.get_type_name()}"


ENGINES = {
    "transformers": load_transformers,
    "optimum-intel": load_optimum,
    "openvino-genai": load_genai,
    "faster-whisper": load_faster_whisper,
    "whisper.cpp": load_whisper_cpp,
}


class Child:
    """State between requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.clips = np.load(settings["clips"])
        self.transcribe: Run | None = None

    def load(self) -> dict[str, Any]:
        """Load the engine and decode two tokens of the first clip."""
        self._import()
        started = time.perf_counter()
        self.transcribe, precision, packages = ENGINES[self.settings["package"]](self.settings)
        self.transcribe(self.clips[:1], 1, FIRST_TOKENS)
        seconds = time.perf_counter() - started
        versions = {name: version(name) for name in packages}
        return {"load_seconds": seconds, "precision": precision, "versions": versions}

    def run(self, clips: int, beam: int) -> dict[str, Any]:
        """Measure one round."""
        assert self.transcribe is not None
        started = time.perf_counter()
        outputs = self.transcribe(self.clips[:clips], beam, self.settings["tokens"])
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "outputs": outputs, "peak_mb": _peak_mb()}

    def _import(self) -> None:
        """Imports are not part of the time to load; a package left out says why."""
        name = self.settings["package"]
        module = {"whisper.cpp": "pywhispercpp", "optimum-intel": "optimum.intel"}.get(name, name)
        try:
            __import__(module.replace("-", "_"))
        except ImportError as error:
            reason = Path(sys.prefix) / "left-out" / module.replace("optimum.", "optimum-")
            if reason.is_file():
                raise ImportError(f"not installed: {reason.read_text().strip()}") from error
            raise


def _peak_mb() -> float:
    """Peak resident memory of this process, MB (1e6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def main() -> None:
    """Answer requests until stdin ends."""
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    child = Child(json.loads(sys.argv[1]))
    for line in sys.stdin:
        name, named = json.loads(line)
        try:
            answer = getattr(child, name)(**named)
        except Exception as error:  # noqa: BLE001  an engine may fail in any way: report it
            traceback.print_exc()
            text = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
            answer = {"error": f"{type(error).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
