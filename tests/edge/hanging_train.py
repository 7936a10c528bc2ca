"""scripts/train.py with something in it that hangs; argv: WHERE, STEP, overrides.

WHERE: step, evaluate, save or native (a sleep in C, which gives Python's lock back); STEP: from
which step on.
"""

import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import train
from edge import guarded

from llmtrain.training import run
from llmtrain.training.session import Session

WHERE, STEP = sys.argv[1], int(sys.argv[2])
NAMES = {"step": "train_step", "native": "train_step", "evaluate": "evaluate", "save": "state"}
FOREVER_S = 3600


def hang():
    """Never come back."""
    if WHERE == "native":
        ctypes.CDLL(None).sleep(FOREVER_S)
    time.sleep(FOREVER_S)


plain = getattr(Session, NAMES[WHERE])


def hanging(session, *rest):
    if session.step >= STEP:
        hang()
    return plain(session, *rest)


assert run.Session is Session
setattr(Session, NAMES[WHERE], hanging)
sys.argv[1:] = sys.argv[3:]
sys.exit(guarded(train.run))
