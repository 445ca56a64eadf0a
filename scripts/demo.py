"""The main job on real speech: translate the shipped clips eagerly and with OpenVINO, compare.

Runs `fairseq-generate` twice on `examples/covost/mini` - an English to German Fairseq checkpoint
and 100 held-out clips - and prints what both said.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fairseq_openvino.commands.verify import compare, generate_twice, report

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "examples" / "covost" / "mini"
SHOWN = 4


def main() -> int:
    """Return 0 if both engines produced the same hypotheses."""
    arguments = [
        str(MINI.relative_to(Path.cwd()) if MINI.is_relative_to(Path.cwd()) else MINI),
        "--config-yaml", "config_st_en_de.yaml", "--gen-subset", "test_st_en_de",
        "--task", "speech_to_text", "--path", str(MINI / "checkpoint.pt"),
        "--max-tokens", "50000", "--beam", "5", "--scoring", "sacrebleu", "--num-workers", "0",
    ]  # fmt: skip
    shown = " ".join(arguments).replace(str(ROOT) + "/", "")
    print(f"fairseq-generate {shown} --user-dir fairseq_openvino [--ov-engine]\n", flush=True)
    eager, engine = generate_twice(arguments)
    for number in sorted(eager.hypotheses)[:SHOWN]:
        print(f"clip {number}")
        print(f"  reference  {eager.references[number]}")
        print(f"  PyTorch    {eager.hypotheses[number][0].text}")
        print(f"  OpenVINO   {engine.hypotheses[number][0].text}")
    comparison = compare(eager, engine)
    print("\n" + report(eager, engine, comparison))
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
