"""Checkpoints: what is wrong with one is named, and nothing is continued from it or overwritten."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trisparse.train.checkpoint import (
    CheckpointError,
    check_checkpoint,
    complete_checkpoints,
    latest_checkpoint,
    prune_checkpoints,
)
from trisparse.train.recipe import Recipe
from trisparse.train.trainer import train

from .conftest import tiny_fields

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "recipe.yaml",
)


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    train(Recipe(**(tiny_fields(text, output) | {"steps": 4})))
    return output


@pytest.fixture
def recipe(finished: Path, tiny: Callable[..., Recipe]) -> Recipe:
    """Of a copy of a finished run, to be spoiled."""
    recipe = tiny(steps=4)
    shutil.copytree(finished, recipe.output)
    return recipe


def newest(recipe: Recipe) -> Path:
    return Path(recipe.output) / "checkpoint-4"


def refused(recipe: Recipe, message: str) -> None:
    """The run is refused with `message`, and every file of it is as before."""
    before = {path: path.read_bytes() for path in Path(recipe.output).rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        train(recipe, resume=True)
    assert before == {path: path.read_bytes() for path in Path(recipe.output).rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("length", [0, 7, -1])
def test_truncated_file_is_named(recipe: Recipe, name: str, length: int) -> None:
    """Guards every file that a resume reads against a disk that was full or a copy that broke off."""
    path = newest(recipe) / name
    path.write_bytes(path.read_bytes()[:length])
    refused(
        recipe,
        rf"checkpoint-4/{name}: truncated: expected \d+ bytes, got \d+; remove .*checkpoint-4 to go on",
    )


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_is_found(recipe: Recipe, name: str) -> None:
    """Guards against values that load without a word and are wrong: formats check lengths only."""
    path = newest(recipe) / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    refused(recipe, rf"checkpoint-4/{name}: changed since it was saved")


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(recipe: Recipe, name: str) -> None:
    """Guards against the Trainer, which goes on with a new optimizer where none is found."""
    (newest(recipe) / name).unlink()
    refused(recipe, rf"checkpoint-4/{name}: missing; remove ")


def test_foreign_file_is_named(recipe: Recipe) -> None:
    """Guards against a second set of weights that a loader might prefer."""
    (newest(recipe) / "pytorch_model.bin").write_bytes(b"pickle")
    refused(recipe, r"pytorch_model\.bin: not part of the checkpoint")


def test_renamed_checkpoint_is_refused(recipe: Recipe) -> None:
    """Guards the schedule and the log against a step number that lies."""
    newest(recipe).rename(Path(recipe.output) / "checkpoint-3")
    shutil.rmtree(Path(recipe.output) / "checkpoint-2")
    refused(
        recipe,
        r"expected one step number, got 4 in manifest\.json, 4 in trainer_state\.json, 3 in the folder's",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(version=2), r"manifest\.json: expected version 1, got 2"),
        (lambda manifest: manifest.pop("step"), r"manifest\.json: expected an object with version, step"),
        (
            lambda manifest: manifest["files"].pop("optimizer.pt"),
            r"optimizer\.pt: missing from manifest\.json",
        ),
        (
            lambda manifest: manifest["files"].pop("rng_state.pth"),
            r"rng_state\.pth: missing from manifest\.json",
        ),
        (
            lambda manifest: manifest["files"].update({"../../x": {}}),
            r"manifest\.json: expected plain file names, got '\.\./\.\./x'",
        ),
        (lambda manifest: manifest.update(step=5), r"expected one step number, got 5 in manifest\.json"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(
    recipe: Recipe, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """Guards the one file that all trust rests on."""
    path = newest(recipe) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))
    refused(recipe, message)


def test_manifest_that_is_not_json_is_refused(recipe: Recipe) -> None:
    """Guards against a traceback from the parser."""
    (newest(recipe) / "manifest.json").write_bytes(b"\xff{")
    refused(recipe, r"manifest\.json: not JSON")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 8}, r"differs from the recipe given in steps \(was 4, now 8\)"),
        ({"seed": 1, "accumulate": 2}, r"in accumulate \(was 1, now 2\), seed \(was 0, now 1\)"),
        ({"model": {"hidden_size": 32}}, r"in model \("),
    ],
)
def test_other_recipe_is_refused(recipe: Recipe, fields: dict[str, Any], message: str) -> None:
    """Guards against a run that is neither the old one nor a new one."""
    other = Recipe(**(vars(recipe) | fields))
    refused(other, message)


def test_other_text_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    """Guards the data, which the recipe only points at."""
    folder = tmp_path / "text"
    shutil.copytree(recipe.data, folder)
    # the same text elsewhere is the same run
    moved = Recipe(**(vars(recipe) | {"data": str(folder)}))
    check_checkpoint(newest(recipe), moved)
    (folder / "sums.txt").write_bytes((folder / "sums.txt").read_bytes() + b"!")
    refused(moved, r"manifest\.json: the run was trained on another text than data='.*text' holds now")


def test_other_number_of_processes_is_refused(recipe: Recipe) -> None:
    """Guards the order of the data: two processes read twice as many windows in a step."""
    folder = newest(recipe)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    state = manifest["files"].pop("rng_state.pth")
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    manifest["files"] |= {"rng_state_0.pth": state, "rng_state_1.pth": state}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused(recipe, r"checkpoint-4: expected the 2 processes of the run, got 1")


@pytest.mark.parametrize("content", [b"", b'{"split": "train", "step": 1}\n', b"nonsense\n", None])
def test_log_that_stops_short_is_refused(recipe: Recipe, content: bytes | None) -> None:
    """Guards the curve of the whole run against a hole."""
    path = Path(recipe.output) / "log.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    refused(recipe, r"log\.jsonl: .*remove .*checkpoint-\d+ to go on from an older one")


@pytest.mark.parametrize("left", ["log.jsonl", "checkpoint-2", "model", "recipe.yaml"])
def test_new_run_does_not_overwrite_an_old_one(recipe: Recipe, left: str) -> None:
    """Guards days of training against a command typed twice."""
    for path in Path(recipe.output).iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        ValueError, match=rf"^output: expected a new or empty folder, got '.*', which holds a run \({left}\)"
    ):
        train(recipe)
    assert [path.name for path in Path(recipe.output).iterdir()] == [left]


def test_latest_is_the_highest_complete_step(tmp_path: Path) -> None:
    """Guards against the order of names, in which 10 comes before 9, and against folders of other make."""
    assert latest_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-best"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / "manifest.json").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    prune_checkpoints(tmp_path, 1)
    assert complete_checkpoints(tmp_path) == [tmp_path / "checkpoint-10"]
    assert (tmp_path / "checkpoint-11").exists()


def test_checkpoint_that_cannot_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a run against a folder that somebody else owns."""
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "manifest.json").write_text("{}")
    remove = Path.unlink

    def unlink(path: Path, **others: Any) -> None:
        if path.parent.name == "checkpoint-1":
            raise PermissionError(13, "Permission denied")
        remove(path, **others)

    monkeypatch.setattr(Path, "unlink", unlink)
    prune_checkpoints(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]
