"""What is kept out of everything that is written: secrets, by their names and by their shapes.

The rules stand here alone, below everything else, so that traces, records, imported files,
exports, messages and warnings follow the same ones. `names` and `shapes` are the tables.
"""

from tracetune.redaction.documents import holds_message, redact_document, redacted_attribute
from tracetune.redaction.names import LONGEST_NAME, SECRET_NAMES, SecretName, ends_secret, is_secret
from tracetune.redaction.shapes import KEY_SHAPES, OTHER_SHAPES, REDACTED, KeyShape, OtherShape
from tracetune.redaction.texts import (
    Redacted,
    is_clean,
    is_json,
    may_name_secret,
    redacted_json,
    redacted_repr,
    redacted_text,
)
from tracetune.redaction.values import may_be_secret, redacted_value, secret_pair

__all__ = [
    "KEY_SHAPES",
    "LONGEST_NAME",
    "OTHER_SHAPES",
    "REDACTED",
    "SECRET_NAMES",
    "KeyShape",
    "OtherShape",
    "Redacted",
    "SecretName",
    "ends_secret",
    "holds_message",
    "is_clean",
    "is_json",
    "is_secret",
    "may_be_secret",
    "may_name_secret",
    "redact_document",
    "redacted_attribute",
    "redacted_json",
    "redacted_repr",
    "redacted_text",
    "redacted_value",
    "secret_pair",
]
