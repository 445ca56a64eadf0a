"""`fairseq-openvino verify-bundle`: is a bundle intact, the one expected, and right on this device?"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairseq_openvino.bundle import Bundle, open_bundle
from fairseq_openvino.errors import EXIT_OK, EXIT_PARTIAL
from fairseq_openvino.flags import add_flags, given
from fairseq_openvino.runtime.options import EngineOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The bundle and what is done with it."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--expect", metavar="SHA256",
        help="of its manifest.json, as `info` shows it: another bundle is refused",
    )  # fmt: skip
    parser.add_argument(
        "--isolated", action="store_true",
        help="first read and compile it in a child of limited memory and time",
    )  # fmt: skip
    add_flags(
        parser, EngineOptions, ("device", "precision"),
        device="run the stored cases of the parity gate there: CPU, GPU, NPU, AUTO",
        precision="run the stored cases at this precision (default: the bundle's own)",
    )  # fmt: skip


def run(arguments: argparse.Namespace, _: list[str]) -> int:
    """Exit code 1 if a device computes something else than the original."""
    bundle = open_bundle(arguments.bundle, arguments.expect)
    size = len(bundle.manifest.files)
    print(f"intact: {size} files, manifest.json {bundle.digest}")
    if arguments.isolated:
        from fairseq_openvino.runtime.isolation import compile_isolated

        compile_isolated(bundle)
        print("read and compiled in a child")
    options = given(arguments, EngineOptions)
    return _compared(bundle, EngineOptions(**_own(bundle) | options)) if options else EXIT_OK


def _own(bundle: Bundle) -> dict[str, str]:
    """The precision that a bundle is meant for, as an option."""
    return {"precision": bundle.manifest.runtime.inference}


def _compared(bundle: Bundle, options: EngineOptions) -> int:
    from fairseq_openvino.export import cases
    from fairseq_openvino.runtime.model import CompiledModel

    where = f"{options.device} at {options.precision}"
    found = cases.compare(CompiledModel(bundle, options))
    if found is None:
        print(
            f"{where}: not compared, the bundle has no stored cases; export it again to have them"
        )
        return EXIT_PARTIAL
    verdict = "passed" if found.passed else "FAILED"
    print(
        f"{where}: largest difference of a log-probability {found.difference:.1e}, limit "
        f"{found.bound:.1e}: {verdict}; most probable token the same at {found.agreeing} of "
        f"{found.positions} positions"
    )
    return EXIT_OK if found.passed else EXIT_PARTIAL
