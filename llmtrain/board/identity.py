"""What every wandb run of this project is called, where it goes, and what never leaves."""

import hashlib
import json
import netrc
import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["auto", "online", "offline", "disabled"]
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
MAX_TAG = 64  # wandb refuses longer ones
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
URL_USER = re.compile(r"(?<=://)[^/@\s\"']+@")
MIN_SECRET = 8  # shorter values would black out ordinary text


def settled_mode(asked: Mode) -> Mode:
    """Return online, offline or disabled: `auto` follows WANDB_MODE, else goes online with a key.

    A key is WANDB_API_KEY or what `wandb login` left in netrc.
    """
    if asked != "auto":
        return asked
    told = os.environ.get("WANDB_MODE", "")
    if told in ("offline", "disabled"):
        return "offline" if told == "offline" else "disabled"
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Return whether a key for the server stands in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any(host in known.hosts for host in ((own,) if own else HOSTS))


def wandb_id(*parts: str) -> str:
    """Return the wandb id of what `parts` name: the same again after a resume."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def tag_list(*tags: str) -> list[str]:
    """Return tags as wandb takes them: none empty, none twice, none too long."""
    return [tag[:MAX_TAG] for tag in dict.fromkeys(tags) if tag]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level, as in `model/d_model`.

    wandb reads a dot in a key as a level of nesting of its own, and finds no such key.
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def redacted(message: Mapping[str, Any]) -> str:
    """Return `message` as a line of JSON without secrets.

    Secrets are the values of environment variables whose names say so, and the user part of URLs.
    """
    line = json.dumps(message, allow_nan=False)
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET:
            line = line.replace(json.dumps(value)[1:-1], "[redacted]")
    return URL_USER.sub("[redacted]@", line)
