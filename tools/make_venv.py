"""Make a virtual environment, also where Debian's python3-venv (and with it ensurepip) is missing.

Usage: python3 tools/make_venv.py .venv
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path


def fetch_pip(folder: Path) -> Path:
    """Download pip's wheel from PyPI into `folder`, check its sha256 and return its path."""
    with urllib.request.urlopen("https://pypi.org/pypi/pip/json", timeout=60) as reply:
        files = json.load(reply)["urls"]
    wheel = next(file for file in files if file["packagetype"] == "bdist_wheel")
    with urllib.request.urlopen(wheel["url"], timeout=180) as reply:
        content = reply.read()
    if hashlib.sha256(content).hexdigest() != wheel["digests"]["sha256"]:
        raise SystemExit(
            f"make_venv: {wheel['filename']}: the download does not match PyPI's sha256; try again"
        )
    path = folder / wheel["filename"]
    path.write_bytes(content)
    return path


def main() -> None:
    # this file may run on an older Python than the package needs
    if sys.version_info < (3, 11):  # noqa: UP036
        raise SystemExit(f"make_venv: Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    target = Path(sys.argv[1])
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    venv.create(target, with_pip=has_ensurepip)
    if not has_ensurepip:
        with tempfile.TemporaryDirectory() as folder:
            # a wheel is a zip file that Python can run from: pip installs itself
            wheel = fetch_pip(Path(folder))
            command = [str(target / "bin" / "python"), f"{wheel}/pip", "install", "--quiet", str(wheel)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
