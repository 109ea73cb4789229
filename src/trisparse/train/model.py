"""The untrained model of a recipe."""

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from trisparse.data.tokenizer import END_OF_DOCUMENT, PADDING, VOCAB_SIZE
from trisparse.models import TrisparseConfig, TrisparseForCausalLM
from trisparse.models.presets import model_config
from trisparse.train.recipe import Recipe


def recipe_config(recipe: Recipe) -> TrisparseConfig:
    """The model configuration that `preset`, `attention` and `model` make, for the byte tokenizer.

    Raises:
        ValueError: an unknown preset or field, a value that does not fit, a vocabulary without room for the
            tokenizer, or positions for less than `context_length`.
    """
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "eos_token_id": END_OF_DOCUMENT,
        "pad_token_id": PADDING,
    } | recipe.model
    try:
        config = model_config(recipe.preset, attention=recipe.attention, **sizes)
    except StrictDataclassError as error:
        # its text runs over several lines, and it is no ValueError
        raise ValueError(f"model: {' '.join(str(error).split())}") from error
    if config.vocab_size <= PADDING:
        raise ValueError(
            f"model.vocab_size: expected at least {PADDING + 1} for bytes and marks, got {config.vocab_size}"
        )
    if config.max_position_embeddings < recipe.context_length:
        if "max_position_embeddings" in recipe.model:
            raise ValueError(
                f"model.max_position_embeddings: expected at least context_length={recipe.context_length}, "
                f"got {config.max_position_embeddings}"
            )
        config.max_position_embeddings = recipe.context_length
    return config


def recipe_model(recipe: Recipe) -> TrisparseForCausalLM:
    """A model with the weights that `recipe.seed` draws."""
    config = recipe_config(recipe)
    set_seed(recipe.seed)
    model = TrisparseForCausalLM(config)
    if recipe.gradient_checkpointing:
        # renamed within transformers 5
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        enable()
    return model
