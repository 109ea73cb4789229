"""The text of a recipe: windows to train on in their final order, and windows held out."""

from typing import Literal

import torch
from torch.utils.data import Dataset

from trisparse.data.corpus import Corpus, folder_corpus, standard_library_corpus
from trisparse.data.packing import PackedWindows, shuffled, spread
from trisparse.train.recipe import Recipe

Item = dict[str, torch.Tensor]


def recipe_corpus(recipe: Recipe) -> Corpus:
    """The corpus that `recipe.data` names.

    Raises:
        ValueError: it cannot be found, cannot be read or holds no text.
    """
    return standard_library_corpus() if recipe.data == "stdlib" else folder_corpus(recipe.data)


def training_windows(recipe: Recipe, corpus: Corpus, processes: int = 1) -> Dataset[Item]:
    """Every window of the run in the order it is read: as many as the steps of all processes take.

    Raises:
        ValueError: less text than one window.
    """
    items = recipe.steps * recipe.accumulate * recipe.batch_size * processes
    return shuffled(_windows(recipe, corpus, "training"), recipe.seed, items)


def heldout_windows(recipe: Recipe, corpus: Corpus) -> Dataset[Item]:
    """`evaluate_windows` held-out windows, spread evenly over the held-out text; all if there are fewer.

    Raises:
        ValueError: less text than one window.
    """
    return spread(_windows(recipe, corpus, "heldout"), recipe.evaluate_windows)


def _windows(recipe: Recipe, corpus: Corpus, split: Literal["training", "heldout"]) -> PackedWindows:
    stream = corpus.stream(split)
    if stream.size < recipe.context_length:
        raise ValueError(
            f"data: expected at least context_length={recipe.context_length} tokens of {split} text in "
            f"{recipe.data!r}, got {stream.size}; give more text or lower context_length"
        )
    return PackedWindows(stream, recipe.context_length, documents=recipe.packed_documents)
