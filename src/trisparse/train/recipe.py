"""The recipe: everything a training run depends on, in one object that checks itself."""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from trisparse.files import write_whole
from trisparse.train.precision import fast_precision
from trisparse.train.typed import parsed, typed

# what may differ between a run and its continuation: none of these changes a number; the text of `data` is
# compared by its fingerprint, so that a folder may move
FREE_FIELDS = frozenset({"output", "data", "save_every", "keep_checkpoints"})

_LEAST = {
    # with fewer, a window of documents that are kept apart may have nothing to predict
    "context_length": 3,
    "batch_size": 1,
    "accumulate": 1,
    "steps": 1,
    "warmup_steps": 0,
    "seed": 0,
    "evaluate_every": 1,
    "evaluate_windows": 1,
    "save_every": 1,
    "keep_checkpoints": 1,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run. The defaults are for the tiny preset.

    Attributes:
        output: the folder for everything the run writes.
        preset: a name in `trisparse.models.presets`.
        attention: "nsa", "full" or "gated_full" for all layers, or one name per layer.
        data: "stdlib" for the running Python's own source, or a folder of text.
        context_length: tokens in one training window.
        batch_size: windows in one forward pass, per process.
        accumulate: forward passes whose gradients make one optimizer step.
        steps: optimizer steps of the whole run; the schedule is stretched over them.
        learning_rate: the highest one, reached after `warmup_steps`.
        weight_decay: AdamW's, on matrices only.
        schedule: how the learning rate goes on after the warmup; "cosine" and "linear" end at zero.
        max_grad_norm: the norm that longer gradients are scaled down to.
        seed: of the initial weights and of the order of the windows.
        precision: "bfloat16" computes in bfloat16 where that is safe; the weights stay float32. "auto" is
            "bfloat16" where this machine multiplies it in hardware, else "float32", and becomes one of them
            when the recipe is made: a run that goes on elsewhere has the precision that it began with.
        evaluate_every: steps between two evaluations; one follows the last step in any case.
        evaluate_windows: held-out windows per evaluation, spread evenly; all if there are fewer.
        save_every: steps between two checkpoints; one follows the last step in any case.
        keep_checkpoints: the newest so many stay.
        gradient_checkpointing: compute activations twice instead of keeping them.
        packed_documents: keep documents that share a window from seeing one another.
        model: fields of `TrisparseConfig` that differ from the preset.

    Raises:
        ValueError: a field of the wrong type or out of range.
    """

    output: str
    preset: str = "tiny"
    attention: str | list[str] = "nsa"
    data: str = "stdlib"
    context_length: int = 512
    batch_size: int = 8
    accumulate: int = 1
    steps: int = 200
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    evaluate_every: int = 50
    evaluate_windows: int = 16
    save_every: int = 50
    keep_checkpoints: int = 2
    gradient_checkpointing: bool = False
    packed_documents: bool = True
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, wanted in get_type_hints(Recipe).items():
            # a frozen dataclass lets itself be completed only this way; an int given for a float becomes one
            object.__setattr__(self, name, typed(name, wanted, getattr(self, name)))
        self._check_ranges()
        for name in ("output", "preset", "attention", "data"):
            if not getattr(self, name):
                raise ValueError(
                    f"{name}: expected a name, got an empty one; leave the key out or fill it in"
                )
        if self.precision == "auto":
            object.__setattr__(self, "precision", fast_precision())
        if "attention" in self.model:
            raise ValueError("model.attention: expected the recipe's own key; write attention=... instead")

    def _check_ranges(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm", "weight_decay"):
            value, zero_too = getattr(self, name), name == "weight_decay"
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero_too):
                wanted = "at least 0" if zero_too else "more than 0"
                raise ValueError(f"{name}: expected a finite number, {wanted}, got {value}")
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps: expected at most steps={self.steps}, got {self.warmup_steps}; "
                "the learning rate would never arrive"
            )
        if self.seed >= 2**32:
            raise ValueError(f"seed: expected at most {2**32 - 1}, got {self.seed}")

    @property
    def attention_name(self) -> str:
        """The attention's name in a table; "mixed" where the layers differ."""
        names = {self.attention} if isinstance(self.attention, str) else set(self.attention)
        return names.pop() if len(names) == 1 else "mixed"


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or of the defaults, with `key=value` or `model.key=value` put over it.

    Raises:
        ValueError: a file that cannot be read or is no mapping, an unknown key, a value of the wrong type, or
            a recipe that does not hold together.
    """
    values = {} if path is None else _read(Path(path))
    for override in overrides:
        _override(values, override)
    _refuse_unknown(values)
    if "output" not in values:
        raise ValueError("output: expected a folder for the run, got none; give output=FOLDER")
    return Recipe(**values)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the recipe with every default filled in; `load_recipe(path)` gives it back."""
    text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
    write_whole(Path(path), text.encode())


def different_fields(one: Recipe, other: Recipe) -> list[str]:
    """The fields in which two recipes differ and that change a run's numbers."""
    names = [entry.name for entry in fields(Recipe) if entry.name not in FREE_FIELDS]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean ...", or all known names where none is near."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {matches[0]!r}?" if matches else f"known are {', '.join(known)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ValueError(f"recipe: cannot read {str(path)!r}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"recipe: expected YAML in {str(path)!r}, got: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        got = type(values).__name__
        raise ValueError(f"recipe: expected `key: value` lines in {str(path)!r}, got a {got}")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override: expected key=value, got {override!r}")
    outer, dot, inner = key.partition(".")
    if not dot:
        _refuse_unknown([key])
        values[key] = parsed(key, text, get_type_hints(Recipe)[key])
        return
    if outer != "model" or not inner:
        raise ValueError(f"{key}: expected a key of the recipe or model.KEY; {nearest(key, _names())}")
    given = values.setdefault("model", {})
    if not isinstance(given, dict):
        typed("model", dict[str, Any], given)
    given[inner] = parsed(key, text, Any)


def _names() -> list[str]:
    return [entry.name for entry in fields(Recipe)]


def _refuse_unknown(keys: Iterable[Any]) -> None:
    for key in keys:
        if key not in _names():
            raise ValueError(f"{key}: expected a key of the recipe; {nearest(str(key), _names())}")
