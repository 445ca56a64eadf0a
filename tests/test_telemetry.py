"""Exporting and quantizing report nothing to anybody, unless the user has agreed to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import child_environment
from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

from fairseq_openvino.compat.telemetry import require_consent

EVENTS = """
import sys
import nncf
import onnx
import openvino as ov
from openvino_telemetry import Telemetry
from openvino_telemetry.utils.sender import TelemetrySender
from fairseq_openvino.compat.telemetry import require_consent

graph = onnx.parser.parse_model('''<ir_version: 9, opset_import: ["": 17]>
    graph (float[1, 2] x) => (float[1, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
    { y = MatMul(x, w) }''')
onnx.save(graph, "graph.onnx")
sent = []
TelemetrySender.send = lambda self, backend, message: sent.append(message)
about = "test", "1", "id", "ga4", False, True
Telemetry(*about)

def events():
    sent.clear()
    Telemetry().init(*about)  # asks for consent again
    nncf.compress_weights(ov.convert_model("graph.onnx"))
    return len(sent)

print("events", events(), file=sys.stderr)
require_consent()
print("events", events(), file=sys.stderr)
"""


def test_nothing_is_sent_without_consent(tmp_path: Path) -> None:
    """By a conversion and a compression, with and without our repair."""
    environment = child_environment(HOME=str(tmp_path), CI="", TF_BUILD="", JENKINS_URL="")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVENTS],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("events")]
    (before,), (after,) = ([int(count) for count in counts] for _, *counts in lines)
    assert before > 2 and after == 0


def test_onnxruntime_leaves_no_identifier(mini_bundle: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from fairseq_openvino.bundle import open_bundle
        from fairseq_openvino.measure.engines.onnx import onnxruntime_model
        onnxruntime_model(open_bundle(sys.argv[1]), 1)
        """
    subprocess.run(
        [sys.executable, "-c", code, str(mini_bundle)], check=True,
        env=child_environment(HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path)),
    )  # fmt: skip
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


@pytest.mark.parametrize(("answer", "heard"), [("1", True), ("0", False), (None, False)])
def test_who_has_agreed_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, heard: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "intel").mkdir()
    if answer is not None:
        (tmp_path / "intel" / "openvino_telemetry").write_text(answer)
    require_consent()
    found = OptInChecker().check(enable_opt_in_dialog=False)
    assert found is (ConsentCheckResult.ACCEPTED if heard else ConsentCheckResult.DECLINED)
