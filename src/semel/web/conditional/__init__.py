"""PUT, PATCH, DELETE, GET and HEAD as RFC 9110 has them: idempotent, and conditional.

Without a framework: headers in, plain answers out. `semel.web.fastapi` and `semel.web.flask` give
the same as a dependency and as a function.
"""

from semel.web.conditional.answers import delete_answer, get_answer, patch_answer, put_answer
from semel.web.conditional.dates import format_date, parse_date
from semel.web.conditional.etags import (
    etag,
    parse_tags,
    strong_match,
    version_etag,
    weak_match,
)
from semel.web.conditional.preconditions import NotMet, Preconditions, Verdict, evaluate
from semel.web.conditional.validators import Validators

__all__ = [
    "NotMet",
    "Preconditions",
    "Validators",
    "Verdict",
    "delete_answer",
    "etag",
    "evaluate",
    "format_date",
    "get_answer",
    "parse_date",
    "parse_tags",
    "patch_answer",
    "put_answer",
    "strong_match",
    "version_etag",
    "weak_match",
]
