"""Examines any HTTP API, in any language, from outside: is it safe to retry?

`examine(target, …)` puts the cases (`semel.checker.cases`) to a `Target` and returns a `Report`. It
knows nothing of the server but its answers, and of Semel only the core. The history checker of
the simulator is something else: `lab.judge.checker`.
"""

from semel.checker.report import Report
from semel.checker.runner import CannotRun, CheckLimits, examine
from semel.checker.target import BadTarget, Effects, Target

__all__ = ["BadTarget", "CannotRun", "CheckLimits", "Effects", "Report", "Target", "examine"]
