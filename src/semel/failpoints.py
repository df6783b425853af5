"""Named points at which a test can kill, stop or delay the process; no-ops unless armed.

`SEMEL_FAILPOINT="before_commit=kill"` kills the process the first time it gets there;
`"before_commit:3=kill"` the third time. Actions: `kill` (SIGKILL), `stop` (SIGSTOP), `raise`,
`sleep(seconds)`. Several are joined with commas. An unarmed point costs one dictionary check.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

__all__ = ["NAMES", "VARIABLE", "Failpoint", "arm", "failpoint", "observers"]

VARIABLE = "SEMEL_FAILPOINT"

NAMES = (
    "before_claim",
    "after_claim",
    "before_takeover",
    "after_takeover",
    "after_begin",
    "before_undo",
    "after_undo",
    "before_upstream",
    "upstream_sent",
    "upstream_answered",
    "upstream_read",
    "cut_off",
    "before_complete",
    "in_commit",
    "before_commit",
    "after_commit",
    "after_complete",
    "before_answer",
    "after_answer",
    "before_release",
    "after_release",
    "before_park",
    "after_park",
    "before_renew",
    "in_sweep",
    "in_migration",
    "before_checkpoint",
    "upload_reserved",
    "upload_created",
    "upload_copied",
    "upload_written",
    "upload_synced",
    "upload_acknowledged",
    "upload_hashed",
    "upload_placing",
    "upload_placed",
    "upload_done",
    "upload_in_sweep",
    "client_before_journal",
    "client_in_journal",
    "client_journaled",
    "client_in_compaction",
    "client_compacted",
    "client_before_send",
    "client_sent",
    "client_answered",
    "client_before_retry",
    "client_before_done",
    "client_in_done",
    "client_done",
)
"""Every point there is, in the order a request meets them; those of the client last."""


class Failpoint(Exception):
    """Raised at a point armed with `raise`."""


_ARMED: dict[str, list[tuple[int, str]]] = {}
_PASSED: dict[str, int] = {}
observers: list[Callable[[str], None]] = []
"""Called with each name that is reached, for tests that count."""


def arm(setting: str) -> None:
    """Arm the points of a setting written as the environment variable is; "" disarms all.

    Raises `ValueError` for an unknown name or action.
    """
    _ARMED.clear()
    _PASSED.clear()
    for part in filter(None, setting.split(",")):
        match = re.fullmatch(r"(\w+)(?::(\d+))?=(kill|stop|raise|sleep\([0-9.]+\))", part.strip())
        if match is None or match.group(1) not in NAMES:
            raise ValueError(f"{VARIABLE}: {part!r} is not name[:count]=kill|stop|raise|sleep(s)")
        _ARMED.setdefault(match.group(1), []).append((int(match.group(2) or 1), match.group(3)))


def failpoint(name: str) -> None:
    """Mark a point in production code."""
    if _ARMED or observers:
        _reach(name)


def _reach(name: str) -> None:
    for observer in observers:
        observer(name)
    passed = _PASSED[name] = _PASSED.get(name, 0) + 1
    for count, action in _ARMED.get(name, ()):
        if count != passed:
            continue
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "raise":
            raise Failpoint(name)
        else:
            time.sleep(float(action[6:-1]))


arm(os.environ.get(VARIABLE, ""))
