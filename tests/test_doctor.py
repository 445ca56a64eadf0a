"""The doctor reports what is there, and works where optional packages are not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fairseq_openvino import __version__, machine
from fairseq_openvino.commands import doctor
from fairseq_openvino.runtime.options import PRECISIONS

ROOT = Path(__file__).resolve().parents[1]

HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "fairseq"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hide())
import importlib.util
_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name in ("torch", "fairseq") else _find(name, package)
)
from fairseq_openvino.commands.doctor import report
print(report())
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def rows():
    return doctor._precisions()


def test_every_precision_is_measured_on_every_device(rows):
    asked = {(row.device, row.asked) for row in rows}
    devices = {row.device for row in rows}
    assert any(device.startswith("CPU") for device in devices)
    measured = [precision for precision in PRECISIONS if precision != "fast"]
    assert asked == {(device, precision) for device in devices for precision in measured}


def test_int8_really_has_eight_bit_weights(rows):
    row = next(row for row in rows if row.device.startswith("CPU") and row.asked == "int8")
    assert row.executed == "i8"


def test_fast_is_explained(rows):
    text = doctor.report()
    assert "What --precision fast means" in text
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["1", "8", "32"]


def test_f32_runs_in_f32_with_an_f32_cache(rows):
    row = next(row for row in rows if row.device.startswith("CPU") and row.asked == "f32")
    assert row.executed == "f32"
    assert row.properties["INFERENCE_PRECISION_HINT"] == "f32"
    assert row.properties["KV_CACHE_PRECISION"] == "f32"
    assert int(row.properties["INFERENCE_NUM_THREADS"]) >= 1


def test_a_device_that_does_not_compile_is_a_row_with_the_reason():
    import openvino as ov

    row = doctor._read_back(ov.Core(), doctor._probe(), "NO_SUCH_DEVICE", "f32")
    assert row.executed.startswith("does not compile: ")
    assert row.properties == {}


def test_cpu_flags_are_those_of_the_kernel():
    if not machine.cpu().flags:
        pytest.skip("this system has no /proc/cpuinfo")
    text = Path("/proc/cpuinfo").read_text()
    shown = doctor._machine()
    for flag in machine.CPU_FLAGS:
        place = "cpu flags" if f" {flag} " in text.replace("\n", " \n") else "cpu lacks"
        assert flag in shown[place].split(", ")


def test_system_without_cpuinfo_is_reported_as_unknown(monkeypatch, tmp_path):
    assert machine.cpu(tmp_path) == machine.CPU()
    monkeypatch.setattr(machine, "cpu", machine.CPU)
    assert "unknown" in doctor._machine()["cpu lacks"]


def control_group(root, line, **files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")).write_text(
            text
        )
    return root


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/a/b", {"a__b__cpu_max": "150000 100000\n"}, 2),
        ("0::/a/b", {"a__cpu_max": "100000 100000\n", "a__b__cpu_max": "max 100000\n"}, 1),
        ("0::/", {"cpu_max": "20000 100000\n"}, 1),
        ("0::/a", {"a__cpu_max": "max 100000\n"}, None),
        ("0::/a", {"a__cpu_max": "nonsense\n"}, None),
        ("0::/gone", {}, None),
        (
            "4:cpu,cpuacct:/docker/x\n1:memory:/",
            {"cpu,cpuacct__cpu_cfs_quota_us": "300000\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"},
            3,
        ),
        (
            "4:cpu,cpuacct:/",
            {"cpu,cpuacct__cpu_cfs_quota_us": "-1\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"},
            None,
        ),
        ("4:cpuset:/", {"cpuset__cpu_max": "100000 100000\n"}, None),
    ],
)  # fmt: skip
def test_control_groups_bound_the_threads(tmp_path, line, files, cores):
    """As Linux lays them out: v2 in one tree, v1 in one for each controller."""
    root = control_group(tmp_path, line, **files)
    assert machine.cpu_quota(root) == cores
    available = len(os.sched_getaffinity(0))
    assert machine.threads(root) == min(available, cores or available)


def test_a_quota_bounds_the_engine_and_is_shown(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda _root=None: 1)
    assert doctor._machine()["threads"] == "1 (control groups allow 1)"


def test_missing_packages_name_their_extra(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", (("no-such-package", "eval"), ("numpy", "")))
    monkeypatch.setattr(doctor, "_shims", lambda: (("all", "inactive", "not asked"),))
    missing, present = doctor.diagnose().packages
    assert doctor._package_row(missing) == ("no-such-package", "not installed (extra: eval)")
    assert present.version == importlib.metadata.version("numpy")


def test_report_without_torch_and_fairseq():
    done = subprocess.run(
        [sys.executable, "-c", HIDE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "torch and fairseq not installed (extra: fairseq)" in done.stdout
    assert platform.python_version() in done.stdout
    assert f"fairseq-openvino {__version__}" in done.stdout
    assert all(f"CPU     {precision}" in done.stdout for precision in PRECISIONS[:4])


def test_report_lists_every_shim():
    pytest.importorskip("fairseq")
    from fairseq_openvino.compat.shims import SHIMS

    code = "from fairseq_openvino.commands.doctor import report; print(report())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["FAIRSEQ_OPENVINO_DISABLE_SHIMS"] = "wer_scorer"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    words = [line.split() for line in done.stdout.splitlines()]
    lines = {row[0]: row[1] for row in words if len(row) > 1}
    assert {shim.__name__: lines[shim.__name__] for shim in SHIMS} == {
        shim.__name__: "inactive" if shim.__name__ == "wer_scorer" else "active" for shim in SHIMS
    }
