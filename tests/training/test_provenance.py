"""A record says where its numbers come from, and one that does not is refused."""

import copy
import json
import re

import pytest
import torch

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.errors import MismatchError
from llmtrain.spec.record import build_record
from llmtrain.spec.rundir import run_directory
from llmtrain.training.loop import train

EVERYWHERE = [
    "code_id", "config_id", "data_id", "tokenizer_id", "seed", "dtype", "metrics_sha256",
    "versions.llmtrain", "versions.python", "versions.torch", "versions.numpy",
    "hardware.device", "hardware.cpu", "hardware.cpu_capability", "hardware.cores",
    "hardware.threads",
]  # fmt: skip
ON_GPU = ["hardware.gpu", "versions.cuda", "versions.driver"]


@pytest.fixture(scope="module")
def fields(make, tiny_corpus_dir, tmp_path_factory):
    """The record of a real run as its file holds it, without the file's own hash."""
    config = make({"runs_root": str(tmp_path_factory.mktemp("runs"))})
    train(config, open_corpus(tiny_corpus_dir))
    raw = json.loads((run_directory(config) / "record.json").read_text())
    return {key: value for key, value in raw.items() if key != "sha256"}


def without(fields, path):
    fields = copy.deepcopy(fields)
    group, _, key = path.rpartition(".")
    del (fields[group] if group else fields)[key]
    return fields


@pytest.mark.parametrize("path", EVERYWHERE)
def test_a_record_without_one_of_its_origins_is_refused(fields, path):
    assert build_record(fields)
    with pytest.raises(MismatchError, match=rf"^record is damaged: {re.escape(path)}: missing key"):
        build_record(without(fields, path))


@pytest.mark.parametrize("path", ON_GPU)
def test_a_record_of_a_gpu_names_it_its_toolkit_and_its_driver(fields, path):
    on_gpu = copy.deepcopy(fields)
    on_gpu["hardware"] |= {"device": "cuda", "gpu": "NVIDIA H200"}
    on_gpu["versions"] |= {"cuda": "12.8", "driver": "570.86.15"}
    assert build_record(on_gpu)
    with pytest.raises(MismatchError, match=rf"^record is damaged: {re.escape(path)}: missing key"):
        build_record(without(on_gpu, path))


def test_the_code_is_a_commit_and_the_hash_of_a_change_or_said_to_be_unknown(fields):
    assert re.fullmatch(r"[0-9a-f]{12}(\+[0-9a-f]{8})?|unknown", fields["code_id"])
    assert re.fullmatch(r"[0-9a-f]{64}", fields["config_id"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_a_machine_without_a_gpu_has_no_driver(fields):
    assert "gpu" not in fields["hardware"]
    assert "driver" not in fields["versions"]
