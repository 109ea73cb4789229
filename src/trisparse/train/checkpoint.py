"""Checkpoints that say of themselves what they hold: a manifest, written last, makes one complete."""

import json
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trisparse.files import sha256_of, sync_file, write_whole
from trisparse.train.recipe import Recipe, different_fields, load_recipe, save_recipe
from trisparse.train.text import recipe_corpus

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
RECIPE = "recipe.yaml"
STATE = "trainer_state.json"

# without one of these a run cannot go on exactly; the weights and the random states have several names
_REQUIRED = (
    r"model(-\d+-of-\d+)?\.safetensors",
    r"optimizer\.pt",
    r"scheduler\.pt",
    r"rng_state(_\d+)?\.pth",
    r"trainer_state\.json",
    r"recipe\.yaml",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from; the message names the file and the reason."""


def checkpoint_step(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.rpartition("-")[2])


def complete_checkpoints(output: str | Path) -> list[Path]:
    """The folders in `output` whose manifest was written, oldest step first."""
    return [folder for folder in _checkpoints(output) if (folder / MANIFEST).is_file()]


def latest_checkpoint(output: str | Path) -> Path | None:
    """The newest complete checkpoint, or None. Its contents are for `check_checkpoint` to judge."""
    return next(reversed(complete_checkpoints(output)), None)


def complete_checkpoint(folder: Path, recipe: Recipe, fingerprint: str) -> None:
    """Turn a folder that the Trainer has filled into a complete checkpoint: recipe, then manifest."""
    # nothing reads it again, and it is no safetensors file
    (folder / "training_args.bin").unlink(missing_ok=True)
    save_recipe(recipe, folder / RECIPE)
    files = {path.name: _describe(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    manifest = {
        "version": MANIFEST_VERSION,
        "step": checkpoint_step(folder),
        "data_fingerprint": fingerprint,
        "packages": _package_versions(),
        "files": files,
    }
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def check_checkpoint(folder: str | Path, recipe: Recipe, fingerprint: str | None = None) -> None:
    """Make sure that a run by `recipe` can go on from `folder` and come out as if it had never stopped.

    `fingerprint` is that of the recipe's corpus; it is computed if it is not given.

    Raises:
        CheckpointError: a file is missing, cut off, changed or not part of the checkpoint; the step numbers
            disagree; the recipe differs in a field that changes numbers; or the text is another.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    _check_files(folder, manifest["files"])
    _check_step(folder, manifest["step"])
    _check_recipe(folder, recipe)
    given = recipe_corpus(recipe).fingerprint() if fingerprint is None else fingerprint
    if manifest["data_fingerprint"] != given:
        raise CheckpointError(
            f"{folder / MANIFEST}: the run was trained on another text than data={recipe.data!r} holds now; "
            "restore the text or start a new run"
        )


def remove_incomplete(output: str | Path) -> None:
    """Remove the checkpoint folders without a manifest, which a killed run leaves behind."""
    for folder in _checkpoints(output):
        if not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def prune_checkpoints(output: str | Path, keep: int) -> None:
    """Remove all complete checkpoints but the newest `keep`; one that cannot be removed stays."""
    for folder in complete_checkpoints(output)[:-keep]:
        try:
            # first the manifest: a folder half removed must not pass for complete
            (folder / MANIFEST).unlink(missing_ok=True)
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(output: str | Path) -> list[Path]:
    folders = [
        path for path in Path(output).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return sorted((path for path in folders if path.is_dir()), key=checkpoint_step)


def _describe(path: Path) -> dict[str, Any]:
    sync_file(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _package_versions() -> dict[str, str]:
    """What the run was made with. Other versions may round differently."""
    found = {}
    for package in ("trisparse", "torch", "transformers", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}; the checkpoint is incomplete"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON; remove {folder} to go on from an older one") from error
    wanted = {"version": int, "step": int, "data_fingerprint": str, "files": dict}
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(k), t) for k, t in wanted.items()):
        raise CheckpointError(
            f"{path}: expected an object with {', '.join(wanted)}; it was not written by trisparse"
        )
    if manifest["version"] != MANIFEST_VERSION:
        raise CheckpointError(
            f"{path}: expected version {MANIFEST_VERSION}, got {manifest['version']}; "
            "use the trisparse that wrote it"
        )
    return manifest


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    for pattern in _REQUIRED:
        if not any(re.fullmatch(pattern, name) for name in files):
            name = re.sub(r"\(.*?\)\?|\\", "", pattern)
            raise CheckpointError(
                f"{folder / name}: missing from {MANIFEST}; remove {folder} to use an older one"
            )
    for name, wanted in files.items():
        # a name with a path in it would lead out of the checkpoint
        if Path(name).name != name or not isinstance(wanted, dict):
            raise CheckpointError(f"{folder / MANIFEST}: expected plain file names, got {name!r}")
        _check_file(folder / name, wanted)
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    extra = sorted(present - set(files) - {MANIFEST})
    if extra:
        raise CheckpointError(f"{folder / extra[0]}: not part of the checkpoint; move it elsewhere")


def _check_file(path: Path, wanted: dict[str, Any]) -> None:
    hint = f"remove {path.parent} to go on from an older one"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {hint}")
    size = path.stat().st_size
    if size != wanted.get("bytes"):
        reason = "truncated" if size < wanted.get("bytes", 0) else "changed"
        raise CheckpointError(f"{path}: {reason}: expected {wanted.get('bytes')} bytes, got {size}; {hint}")
    if sha256_of(path) != wanted.get("sha256"):
        raise CheckpointError(f"{path}: changed since it was saved: its sha256 is another; {hint}")


def _check_step(folder: Path, step: int) -> None:
    state = json.loads((folder / STATE).read_bytes())
    told = {MANIFEST: step, STATE: state.get("global_step"), "the folder's name": checkpoint_step(folder)}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{number} in {place}" for place, number in told.items())
        raise CheckpointError(f"{folder / STATE}: expected one step number, got {listed}; was it renamed?")


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    saved = load_recipe(folder / RECIPE)
    names = different_fields(saved, recipe)
    if names:
        listed = ", ".join(f"{n} (was {getattr(saved, n)!r}, now {getattr(recipe, n)!r})" for n in names)
        raise CheckpointError(
            f"{folder / RECIPE}: differs from the recipe given in {listed}; give the values of the run, or "
            "start a new one"
        )
