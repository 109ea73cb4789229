"""The configuration of the language model, as `config.json` holds it."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from trisparse import backends
from trisparse.config import SparseConfig
from trisparse.nn.cache import STEP
from trisparse.nn.rope import Rope, Yarn

ATTENTIONS = ("nsa", "full", "gated_full")
COMPRESSORS = ("mlp", "linear", "mean")
COMPRESSED_ROPES = ("block", "none")
# what one cache layer class of ours registers as; the names of transformers would build dense caches
LAYER_TYPE = "trisparse"

_AT_LEAST_ONE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "value_head_dim",
)
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
)
# keys of transformers that would change the rotation, and the only value that we compute
_ROPE_FIXED = {"partial_rotary_factor": 1.0, "truncate": True, "mscale": None, "mscale_all_dim": None}


@strict
class TrisparseConfig(PreTrainedConfig):
    """Sizes of the model and the attention of each layer.

    `attention` is "nsa", "full" or "gated_full" for all layers, or a list with one of them per layer. The
    `nsa_*` fields are those of `SparseConfig`; none may be named after a sliding window, or generation would
    cut the cache. `rope_parameters` is the usual dict: rope_type "default" or "yarn", rope_theta, and for
    YaRN factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor. `recompute` and
    `backend` are those of `sparse_attention`. `max_rollback` is that of the caches made for the model: how
    many tokens a crop can take back, and so how long the guesses of assisted decoding may be.

    Raises:
        ValueError: sizes that do not fit each other, an unknown attention or rope type.
    """

    model_type = "trisparse"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    vocab_size: int = 320
    hidden_size: int = 256
    intermediate_size: int | None = None
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    head_dim: int | None = None
    value_head_dim: int | None = None
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    rope_parameters: dict | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = 256
    pad_token_id: int | None = 257
    attention: str | list[str] = "nsa"
    nsa_compress_block: int = 32
    nsa_compress_stride: int = 16
    nsa_select_block: int = 64
    nsa_num_selected: int = 16
    nsa_num_initial: int = 1
    nsa_num_local: int = 2
    nsa_window: int = 512
    compressor: str = "mlp"
    shared_kv: bool = False
    compressed_rope: str = "block"
    recompute: bool = False
    backend: str = "auto"
    max_rollback: int = STEP

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            # SwiGLU's usual 8/3, rounded up to a multiple of 64
            self.intermediate_size = -(-self.hidden_size * 8 // 3 // 64) * 64
        if self.rope_parameters is None:
            # older files, and keyword arguments, have it beside the other fields
            self.rope_parameters = {
                "rope_type": "default",
                "rope_theta": kwargs.get("rope_theta", 10000.0),
            }
        self.layer_types = [LAYER_TYPE] * self.num_hidden_layers
        super().__post_init__(**kwargs)
        self.check()

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` holds it: without the layer types, which follow from the number of layers.

        Whoever reads the file as a configuration of no model in particular would refuse ours.
        """
        fields = super().to_dict()
        fields.pop("layer_types", None)
        return fields

    def validate_layer_type(self) -> None:
        """Replaces the inherited check, which knows only the layer types of transformers itself."""

    def check(self) -> None:
        """Raise ValueError for what does not hold together, as at the start: fields can be changed later."""
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        for name in _AT_LEAST_ONE:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if self.max_rollback < 0:
            raise ValueError(f"max_rollback: expected at least 0, got {self.max_rollback}")
        choices_of = {
            "compressor": COMPRESSORS,
            "compressed_rope": COMPRESSED_ROPES,
            "backend": ("auto", *backends.NAMES),
        }
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected {', '.join(choices)}; got {getattr(self, name)!r}")
        if groups < 1 or heads % groups:
            raise ValueError(
                f"num_key_value_heads: expected a divisor of num_attention_heads={heads}, got {groups}"
            )
        unknown = sorted(set(self.attention_of_layers()) - set(ATTENTIONS))
        if unknown:
            raise ValueError(f"attention: expected {', '.join(ATTENTIONS)}; got {unknown[0]!r}")
        if len(self.attention_of_layers()) != self.num_hidden_layers:
            raise ValueError(
                f"attention: expected one name or num_hidden_layers={self.num_hidden_layers} of them, "
                f"got {len(self.attention_of_layers())}"
            )
        self.sparse_config()
        self.rope()

    def attention_of_layers(self) -> list[str]:
        """The attention of each layer, first to last."""
        if isinstance(self.attention, str):
            return [self.attention] * self.num_hidden_layers
        return list(self.attention)

    def sparse_config(self) -> SparseConfig:
        """The `nsa_*` fields."""
        names = SparseConfig.__dataclass_fields__
        return SparseConfig(**{name: getattr(self, f"nsa_{name}") for name in names})

    def rope(self) -> Rope:
        """What `rope_parameters` says."""
        parameters = self.rope_parameters or {}
        _check_rope(parameters)
        yarn = None
        if parameters.get("rope_type") == "yarn":
            yarn = Yarn(
                factor=parameters["factor"],
                original_length=parameters.get("original_max_position_embeddings")
                or self.max_position_embeddings,
                beta_fast=parameters.get("beta_fast") or 32.0,
                beta_slow=parameters.get("beta_slow") or 1.0,
                attention_factor=parameters.get("attention_factor"),
            )
        assert self.head_dim is not None
        return Rope(dim=self.head_dim, theta=parameters.get("rope_theta", 10000.0), yarn=yarn)


def _check_rope(parameters: dict[str, Any]) -> None:
    """Raise ValueError for another kind of rotation than ours, or what is no number."""
    kind = parameters.get("rope_type", "default")
    if kind not in ("default", "yarn"):
        raise ValueError(f"rope_parameters: expected rope_type 'default' or 'yarn', got {kind!r}")
    if kind == "yarn" and "factor" not in parameters:
        raise ValueError(f"rope_parameters: expected a factor for 'yarn', got {sorted(parameters)}")
    for name in _ROPE_NUMBERS:
        number = parameters.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise ValueError(f"rope_parameters: expected a number for {name}, got {number!r}")
    for name, meant in _ROPE_FIXED.items():
        if parameters.get(name) not in (None, meant):
            raise ValueError(
                f"rope_parameters: expected {name} {meant}, the only one there is, got {parameters[name]}"
            )
