"""What a run tells whoever watches it."""

import sys


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
