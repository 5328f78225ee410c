"""What an object store's error says, in one line and without secrets; pure.

A store answers in XML, which for an expired token holds the token itself, and for a wrong signature
the key's name; a signed URL holds a signature. None of that may reach a log (DESIGN.md §13, 14).
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 400  # characters: the rest is how a client came to the same end many times
_QUERY: Final = re.compile(r"[?][^\s\"']+")
_XML: Final = re.compile(r"<(?:\?xml|Error\b).*", re.DOTALL)
_CODE: Final = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]*)</Message>")

# Codes of S3 ("Error responses") and Azure ("Common REST API error codes") for a token or key that
# was good once: 400 by some stores, 403 by others.
_EXPIRED: Final = re.compile(
    r"\b(ExpiredToken(?:Exception)?|TokenRefreshRequired|InvalidToken|RequestExpired|"
    r"ExpiredAuthenticationToken|token (?:has |is )?expired)\b",
    re.IGNORECASE,
)
_NOT_IMPLEMENTED: Final = re.compile(r"\b501 Not Implemented\b|<Code>NotImplemented</Code>")


def told(error: BaseException) -> str:
    """The first line of a foreign error, with the code and message of the store's answer."""
    text = str(error)
    first, _, _ = text.partition("\n")
    answer = ": ".join(m[1] for m in (_CODE.search(text), _MESSAGE.search(text)) if m and m[1])
    return (_QUERY.sub("", _XML.sub("", first)).rstrip(" :")[:LONGEST] + f": {answer}").rstrip(": ")


def is_expired(error: BaseException) -> bool:
    """Whether the store refuses credentials that it once took."""
    return _EXPIRED.search(str(error)) is not None


def is_unsupported(error: BaseException) -> bool:
    """Whether the store says that it does not know what was asked of it."""
    return _NOT_IMPLEMENTED.search(str(error)) is not None
