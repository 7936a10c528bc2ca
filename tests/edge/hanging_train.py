"""scripts/train.py with something in it that hangs; argv: WHERE, STEP, overrides.

WHERE: step, evaluate, save (its copy), write (its files) or native (a sleep in C, which gives
Python's lock back); STEP: from which step on.
"""

import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import train
from edge import guarded

from llmtrain.training import run, saver
from llmtrain.training.session import Session

WHERE, STEP = sys.argv[1], int(sys.argv[2])
PLACES = {
    "step": (Session, "train_step"),
    "native": (Session, "train_step"),
    "evaluate": (Session, "evaluate"),
    "save": (Session, "state"),
    "write": (saver, "write_checkpoint"),
}
FOREVER_S = 3600


def hang():
    """Never come back."""
    if WHERE == "native":
        ctypes.CDLL(None).sleep(FOREVER_S)
    time.sleep(FOREVER_S)


owner, name = PLACES[WHERE]
plain = getattr(owner, name)


def hanging(first, *rest, **named):
    if named.get("step", getattr(first, "step", None)) >= STEP:
        hang()
    return plain(first, *rest, **named)


assert run.Session is Session
setattr(owner, name, hanging)
sys.argv[1:] = sys.argv[3:]
sys.exit(guarded(train.run))
