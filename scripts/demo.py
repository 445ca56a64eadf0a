"""The main job on real speech: translate the shipped clips eagerly and with OpenVINO, compare.

Runs `fairseq-generate` twice on `examples/covost/mini` - an English to German Fairseq checkpoint
and 100 held-out clips - and prints what both said. Then some of the clips become one recording, which a
Whisper transcribes to subtitles: the shipped one, or any other on any file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from fairseq_openvino.commands.verify import compare, generate_twice, report
from fairseq_openvino.speech.audio import read_audio

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "examples" / "covost" / "mini"
WHISPER = ROOT / "examples" / "covost" / "whisper" / "mini"
SHOWN = 4
JOINED, PAUSE_SECONDS, RATE_HZ = 12, 1.0, 16_000
SHOWN_LINES = 16


def main() -> int:
    """Return 0 if both engines produced the same hypotheses and the recording became subtitles."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whisper", metavar="SOURCE", help="another Whisper than the shipped one")
    parser.add_argument("--audio", metavar="FILE", help="another recording than joined clips")
    arguments = parser.parse_args()
    is_same = translate()
    with tempfile.TemporaryDirectory() as directory:
        audio = arguments.audio or str(joined(Path(directory) / "talk.wav"))
        is_written = subtitle(audio, arguments.whisper or shown(WHISPER))
    return 0 if is_same and is_written else 1


def shown(path: Path) -> str:
    """A path of this checkout, as short as it can be."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def joined(path: Path) -> Path:
    """Some of the clips as one recording."""
    pause = np.zeros(round(PAUSE_SECONDS * RATE_HZ), np.float32)
    parts: list[np.ndarray] = []
    for clip in sorted((MINI / "clips").glob("*.mp3"))[:JOINED]:
        parts += [read_audio(clip, RATE_HZ)[0], pause]
    soundfile.write(path, np.concatenate(parts), RATE_HZ)
    return path


def subtitle(audio: str, whisper: str) -> bool:
    """Print the head of a recording's subtitles; returns whether there are any."""
    words = ["transcribe", audio, "--model", whisper, "--format", "srt"]
    print("\nfairseq-openvino", *words, "\n", flush=True)
    command = [sys.executable, "-m", "fairseq_openvino", *words]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    lines = done.stdout.splitlines()
    print("\n".join(lines[:SHOWN_LINES]), *(["..."] if len(lines) > SHOWN_LINES else []), sep="\n")
    return done.returncode == 0 and bool(lines)


def translate() -> bool:
    """Print what both engines make of the clips; returns whether it is the same."""
    arguments = [
        shown(MINI), "--config-yaml", "config_st_en_de.yaml", "--gen-subset", "test_st_en_de",
        "--task", "speech_to_text", "--path", str(MINI / "checkpoint.pt"),
        "--max-tokens", "50000", "--beam", "5", "--scoring", "sacrebleu", "--num-workers", "0",
    ]  # fmt: skip
    words = " ".join(arguments).replace(str(ROOT) + "/", "")
    print(f"fairseq-generate {words} --user-dir fairseq_openvino [--ov-engine]\n", flush=True)
    eager, engine = generate_twice(arguments)
    for number in sorted(eager.hypotheses)[:SHOWN]:
        print(f"clip {number}")
        print(f"  reference  {eager.references[number]}")
        print(f"  PyTorch    {eager.hypotheses[number][0].text}")
        print(f"  OpenVINO   {engine.hypotheses[number][0].text}")
    comparison = compare(eager, engine)
    print("\n" + report(eager, engine, comparison))
    return comparison.passed


if __name__ == "__main__":
    sys.exit(main())
