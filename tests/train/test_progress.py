"""Progress: a bar for people, few lines for files."""

import io

import pytest

from trisparse.train.progress import OnProgress, Progress, show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(on_progress: OnProgress, steps: int, first_step: int = 0) -> None:
    for step in range(first_step + 1, steps + 1):
        left = 4000.0 * (steps - step) / steps
        on_progress(
            Progress(
                step=step,
                steps=steps,
                first_step=first_step,
                bits_per_byte=2.5,
                tokens_per_second=1234.5,
                seconds_left=left,
            )
        )


@pytest.mark.parametrize(
    ("steps", "first_step", "lines"), [(200, 0, 10), (3, 0, 3), (200, 150, 3), (1, 0, 1)]
)
def test_file_gets_a_line_per_tenth(steps: int, first_step: int, lines: int) -> None:
    """Guards a job's log file against a line per step, and against silence."""
    stream = io.StringIO()
    with show_progress(stream) as on_progress:
        run(on_progress, steps, first_step)
    written = stream.getvalue().splitlines()
    assert len(written) == lines
    assert written[-1] == f"step {steps}/{steps}, 2.500 bits per byte, 1,234 tokens/s, 0:00 left"


def test_hours_are_written_out() -> None:
    """Guards against minutes that run to three digits."""
    stream = io.StringIO()
    with show_progress(stream) as on_progress:
        run(on_progress, 10)
    assert stream.getvalue().splitlines()[0].endswith(", 1:00:00 left")


def test_terminal_gets_a_bar() -> None:
    """Guards the bar's own library calls, which nothing else would run."""
    stream = Terminal()
    with show_progress(stream) as on_progress:
        run(on_progress, 20)
    assert "step 20/20" in stream.getvalue()
