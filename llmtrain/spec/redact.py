"""Secrets stay in the environment: no text that leaves this program holds one."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from urllib.parse import quote

from llmtrain.spec.errors import ConfigError

SECRET_NAME = re.compile(
    r"(?:^|_)(?:\w*APIKEY|KEY|\w*TOKEN|SECRET|PASSW\w*|PASSPHRASE|CREDENTIALS?)(?:_|$)",
    re.IGNORECASE,
)
"""As whole words: TOKENIZER, MAX_TOKENS and KEYBOARD name no secret."""
LOOSE_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
LOOKS_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9+=_.-]{20,}")
"""What any variable with such a name must hold besides, to count as a secret."""
SHORTEST = 8
"""A shorter value of such a variable is a switch, as in TOKENIZERS_PARALLELISM=false."""
REDACTED = "[redacted]"

_URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_ASSIGNED = re.compile(
    r"\b(?P<name>(?:[\w.-]*[_.-])?(?:key|apikey|token|secret|password|passwd)=)[^\s'\"&,]+",
    re.IGNORECASE,
)
_KNOWN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=Bearer )\S+")


def secrets() -> dict[str, str]:
    """Return the environment's secrets, value -> name of the variable.

    A variable holds one where its name says so and its value is neither short, a path nor a number.
    """
    found = {}
    for name, value in os.environ.items():
        sure = SECRET_NAME.search(name) is not None
        for line in value.splitlines() if sure or LOOSE_NAME.search(name) else ():
            if len(line) < SHORTEST or line[0] in "/~." or _is_number(line):
                continue
            if sure or LOOKS_RANDOM.fullmatch(line):
                found[line] = name
    return found


def redact(text: str) -> str:
    """Return `text` without secrets: by value, by the name before a '=', and in URLs."""
    spelled = sorted((s for value in secrets() for s in _spellings(value)), key=len, reverse=True)
    for spelling in spelled:
        text = text.replace(spelling, REDACTED)
    text = _URL_USER.sub(REDACTED, text)
    text = _ASSIGNED.sub(rf"\g<name>{REDACTED}", text)
    return _KNOWN.sub(REDACTED, text)


def refuse_secret(field: str, text: str) -> None:
    """Raise ConfigError where a setting holds a secret: settings are stored and sent to wandb."""
    for value, name in secrets().items():
        if any(spelling in text for spelling in _spellings(value)):
            raise ConfigError(
                f"{redact(field)} holds the value of ${name}, and settings are stored; "
                "leave it to the environment"
            )
    if _URL_USER.search(text) or _KNOWN.search(text):
        raise ConfigError(
            f"{redact(field)} holds a user or key in {redact(text)[:200]!r}, and settings are "
            "stored; leave it to the environment or ~/.netrc"
        )


def _spellings(value: str) -> Iterator[str]:
    yield from {
        value,
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
        quote(value, safe=""),
        shlex.quote(value),
    }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
