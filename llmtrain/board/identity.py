"""What every wandb run of this project is called, where it goes, and what never leaves."""

import hashlib
import json
import netrc
import os
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from llmtrain.spec.redact import redact

Mode = Literal["auto", "online", "offline", "disabled"]
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
MAX_TAG = 64  # wandb refuses longer ones
KEY_SIGN = "/"  # between levels: a dot is a level of its own to wandb, which finds no such key


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


def redacted(message: Mapping[str, Any]) -> str:
    """Return `message` as a line of JSON whose texts hold no secret (spec/redact.py)."""
    return json.dumps(_clean(message), allow_nan=False)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
