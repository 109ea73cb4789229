"""How the command line is called, and a model for it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trisparse.cli.main import run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs `trisparse WORDS` in this process -> exit code, stdout, stderr."""

    def caller(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trisparse", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return caller


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model with its tokenizer."""
    from trisparse.data.tokenizer import byte_tokenizer
    from trisparse.models import TrisparseForCausalLM
    from trisparse.models.presets import model_config

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = model_config("tiny", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    TrisparseForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
