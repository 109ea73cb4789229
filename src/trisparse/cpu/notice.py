"""Lines of progress, for whoever wonders why the first call takes seconds."""

import logging
import sys

LOG = logging.getLogger("trisparse")


def say(text: str) -> None:
    """Log `text`, and show it on a terminal if the log does not."""
    LOG.info(text)
    if not LOG.isEnabledFor(logging.INFO) and sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"trisparse: {text}\n")
        sys.stderr.flush()
