"""Loads a trained model with its tokenizer from a folder, and names the file at fault where that fails."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import logging

from trisparse.models.causal_lm import TrisparseForCausalLM
from trisparse.models.configuration import TrisparseConfig


def model_folder(path: Path) -> Path:
    """`path`, or the `model` folder in it where `path` is that of a training run.

    Raises:
        FileNotFoundError: a file of a trained model is missing; the message names it.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"model: expected the folder of a trained model; {folder / name} does not exist"
            )
    return folder


def _check_config(path: Path) -> None:
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model: {path} is not a model configuration: {error}") from error
    if kind != TrisparseConfig.model_type:
        raise ValueError(f"model: {path}: expected model_type {TrisparseConfig.model_type!r}, got {kind!r}")


def load_model(path: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """The model in evaluation mode, in `dtype` or as it was saved, and its tokenizer.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: a file is damaged, or the weights are of another configuration. Nothing is written.
    """
    folder = model_folder(path)
    _check_config(folder / "config.json")
    logging.disable_progress_bar()
    weights = folder / "model.safetensors"
    try:
        loaded: Any = TrisparseForCausalLM.from_pretrained(
            folder, dtype="auto" if dtype is None else dtype, output_loading_info=True
        )
    except StrictDataclassError as error:
        # its text runs over several lines, and it is no ValueError
        raise ValueError(f"model: {folder / 'config.json'}: {' '.join(str(error).split())}") from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"model: {weights}: cannot be loaded: {error}") from error
    model, info = loaded
    wrong = sorted(info["missing_keys"]) or sorted(info["unexpected_keys"])
    if wrong:
        raise ValueError(f"model: {weights}: the weights are of another configuration: {wrong[0]}")
    return model.eval().to(device), _load_tokenizer(folder)


def _load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    # the Rust library raises Exception itself
    except Exception as error:
        raise ValueError(f"model: {folder / 'tokenizer.json'}: cannot be loaded: {error}") from error
