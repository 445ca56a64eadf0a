"""OpenVINO's tools and onnxruntime report nothing unless the user has said so.

`import openvino`, `convert_model` and NNCF send events to Google Analytics unless the user has opted out,
each from a process forked for it that waits up to 3 s for the network (openvino 2026.4:
`tools/ovc/__init__.py`; openvino_telemetry 2025.2: `main.py:init` with `enable_opt_in_dialog=False`,
`backend_ga4.py:send`), and keep an identifier in `~/intel`: most of the time of a small export. onnxruntime
1.32 keeps an identifier of the machine and sends events to Microsoft, unless a variable says otherwise
when it is imported (its `Privacy.md`).
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any


@cache
def require_consent() -> None:
    """Take no answer for a no, in this process; `opt_in_out --opt_in` is one, and `ORT_DISABLE_TELEMETRY`.

    To be called before OpenVINO and onnxruntime are imported: by the `__init__` of each room that does.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    except ImportError:
        return  # without the package nothing is sent
    check = OptInChecker.check

    def consent(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = check(self, *args, **kwargs)
        return ConsentCheckResult.DECLINED if found is ConsentCheckResult.NO_FILE else found

    OptInChecker.check = consent
