"""Recipes: defaults, YAML, overrides and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trisparse import backends
from trisparse.train.recipe import Recipe, different_fields, load_recipe, save_recipe


def test_defaults_need_only_an_output() -> None:
    """Guards the shortest command line there is."""
    assert load_recipe(None, ["output=runs/a"]) == Recipe(output="runs/a")


def test_overrides_win_over_the_file_and_take_the_annotated_type(tmp_path: Path) -> None:
    """Guards the order of precedence, and numbers that YAML 1.1 takes for words."""
    path = tmp_path / "recipe.yaml"
    path.write_text("output: a\nsteps: 40\nlearning_rate: 1e-4\nmodel: {hidden_size: 64}\n")
    overrides = [
        "steps=50",
        "model.hidden_size=128",
        "model.rms_norm_eps=1e-5",
        "gradient_checkpointing=true",
    ]
    recipe = load_recipe(path, [*overrides, "weight_decay=0", "attention=[nsa, full]", "data=2024"])
    assert (recipe.steps, recipe.learning_rate, recipe.weight_decay) == (50, 1e-4, 0.0)
    assert recipe.model == {"hidden_size": 128, "rms_norm_eps": 1e-5}
    assert recipe.gradient_checkpointing is True
    assert (recipe.attention, recipe.attention_name, recipe.data) == (["nsa", "full"], "mixed", "2024")


@pytest.mark.parametrize(
    ("instructions", "wanted"),
    [("amx", "bfloat16"), ("avx512_bf16", "bfloat16"), ("avx512", "float32"), ("portable", "float32")],
)
def test_auto_is_the_precision_that_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, instructions: str, wanted: str
) -> None:
    """Guards against a run that goes on elsewhere in another precision: what is saved is the choice."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(backends, "choose", lambda *_: "cpu")
    monkeypatch.setattr(backends, "cpu_instructions", lambda _: instructions)
    recipe = load_recipe(None, ["output=a", "precision=auto"])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    monkeypatch.undo()
    assert load_recipe(tmp_path / "recipe.yaml").precision == recipe.precision == wanted


def test_without_kernels_auto_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against bfloat16 by PyTorch alone, which is many times slower than its float32."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(backends, "choose", lambda *_: "torch")
    assert Recipe(output="a", precision="auto").precision == "float32"


def test_saved_recipe_comes_back_whole(tmp_path: Path) -> None:
    """Guards the recipe beside a checkpoint: every field is in it, also those left at their default."""
    recipe = Recipe(output="a", attention=["nsa", "full"], learning_rate=3e-4, model={"hidden_size": 64})
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert "warmup_steps: 20" in (tmp_path / "recipe.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_only_fields_that_change_numbers_count_as_different() -> None:
    """Guards a resume from a moved folder, and against one with another schedule."""
    one = Recipe(output="a")
    other = Recipe(output="b", data="elsewhere", save_every=7, keep_checkpoints=1, steps=300, seed=1)
    assert different_fields(one, other) == ["steps", "seed"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", r"^stepz: expected a key of the recipe; did you mean 'steps'\?$"),
        ("optimizer.lr=3", r"^optimizer\.lr: expected a key of the recipe or model\.KEY; "),
        ("steps", r"^override: expected key=value, got 'steps'$"),
        ("steps=many", r"^steps: expected an int, got str 'many'; write `steps: VALUE`"),
        ("steps=1.5", r"^steps: expected an int, got float 1\.5"),
        ("steps=true", r"^steps: expected an int, got bool True"),
        ("steps=[", r"^steps: expected an int, got '\[', which is not YAML$"),
        ("learning_rate=fast", r"^learning_rate: expected a number, got str 'fast'"),
        ("learning_rate=.nan", r"^learning_rate: expected a finite number, more than 0, got nan$"),
        ("weight_decay=-1", r"^weight_decay: expected a finite number, at least 0, got -1\.0$"),
        ("schedule=cosin", r"^schedule: expected 'cosine' or 'linear' or 'constant', got str 'cosin'"),
        ("precision=float16", r"^precision: expected 'float32' or 'bfloat16' or 'auto', got str 'float16'"),
        ("packed_documents=1", r"^packed_documents: expected true or false, got int 1"),
        ("model=tiny", r"^model: expected a mapping of names to values, got str 'tiny'"),
        ("attention=[1]", r"^attention: expected a text or a list of a text, got list \[1\]"),
        ("attention=[]", r"^attention: expected a name, got an empty one"),
        ("model.attention=full", r"^model\.attention: expected the recipe's own key"),
        ("warmup_steps=201", r"^warmup_steps: expected at most steps=200, got 201"),
        ("batch_size=0", r"^batch_size: expected at least 1, got 0$"),
        ("context_length=1", r"^context_length: expected at least 3, got 1$"),
        ("seed=4294967296", r"^seed: expected at most 4294967295, got 4294967296$"),
    ],
)
def test_wrong_override_is_refused(override: str, message: str) -> None:
    """Guards against a misspelled or mistyped setting that a run would silently do without."""
    with pytest.raises(ValueError, match=message):
        load_recipe(None, ["output=a", override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", r"^recipe: expected `key: value` lines in '.*', got a list$"),
        ("steps: [", r"^recipe: expected YAML in '.*', got: "),
        ("output: a\nstep: 3\n", r"^step: expected a key of the recipe; did you mean 'steps'\?$"),
        ("output: 3\n", r"^output: expected a text, got int 3"),
        ("output: a\nmodel:\n", r"^model: expected a mapping of names to values, got NoneType None"),
        ("steps: 3\n", r"^output: expected a folder for the run, got none; give output=FOLDER$"),
        ("", r"^output: expected a folder for the run"),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """Guards each thing a recipe file can get wrong before training starts."""
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """Guards against a run by the defaults where a recipe was meant."""
    with pytest.raises(ValueError, match=r"^recipe: cannot read '.*none\.yaml': No such file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("fields", [{"steps": "3"}, {"learning_rate": None}, {"data": 3}])
def test_constructor_checks_types_too(fields: dict[str, Any]) -> None:
    """Guards the Python door as well as the command line."""
    with pytest.raises(ValueError, match=f"^{next(iter(fields))}: expected "):
        Recipe(output="a", **fields)


def test_light_modules_leave_transformers_alone() -> None:
    """Guards the speed of `trisparse --help`, which reads the recipe's defaults."""
    modules = ("recipe", "progress", "log", "checkpoint", "interrupt")
    imports = "; ".join(f"import trisparse.train.{module}" for module in modules)
    check = "assert not {'transformers', 'accelerate', 'rich'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", f"import sys; {imports}; {check}"], check=True)
