"""A black-box checker for any HTTP API, in any language: is it safe to retry?

`examine(target, …)` runs the cases (`semel.checker.cases`) against a `Target` and returns a
`Report`. It knows nothing of the server but its responses, and of Semel only the core.
"""

from semel.checker.report import Report
from semel.checker.runner import CannotRun, CheckLimits, examine
from semel.checker.target import BadTarget, Effects, Target

__all__ = ["BadTarget", "CannotRun", "CheckLimits", "Effects", "Report", "Target", "examine"]
