"""`trisparse chat`"""

import io
import select
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trisparse.cli.arguments import Device, WeightDtype, placement
from trisparse.cli.output import say

_HELP = (
    "/reset forgets everything, /stats shows the last answer's numbers, /exit or Ctrl-D ends; "
    "Ctrl-C stops an answer"
)
_LOOK_SECONDS = 0.2


def chat(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model or of a training run.")],
    tokens: Annotated[
        int, typer.Option("--tokens", "--max-new-tokens", min=1, help="New tokens at most in an answer.")
    ] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    dtype: WeightDtype = None,
) -> None:
    """Talk with a model, a line a turn; the cache keeps the conversation, so that only new text is read.

    /reset forgets it, /stats shows the last answer's numbers, /exit or Ctrl-D ends, Ctrl-C stops an answer,
    and the chat where there is none.
    """
    import torch

    from trisparse import validate
    from trisparse.cli.statistics import PREFILL_CHUNK
    from trisparse.models.conversation import Conversation
    from trisparse.models.load import load_model

    conversation = Conversation(*load_model(model, **placement(device, dtype)))
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "max_new_tokens": tokens,
        "do_sample": temperature > 0,
        "prefill_chunk_size": PREFILL_CHUNK,
    }
    if temperature > 0:
        settings["temperature"] = temperature
    numbers = ["no answer yet"]
    if isinstance(sys.stdin, io.TextIOWrapper):
        # bytes that are no UTF-8 are told, and end nothing
        sys.stdin.reconfigure(errors="surrogateescape")
    while (line := _next_line()) is not None:
        if line == "/exit":
            return
        if line == "/stats":
            say("\n".join(numbers))
        elif line == "/reset":
            conversation.reset()
            numbers = ["no answer yet"]
        elif line.startswith("/"):
            say(_HELP)
        elif line:
            try:
                validate.unicode_text("line", line)
            except ValueError as error:
                say(str(error))
            else:
                numbers = _answer(conversation, line, settings)


def _next_line() -> str | None:
    """What the user types next, None at the end of the input."""
    asked = sys.stdin.isatty()
    if asked:
        sys.stderr.write("> ")
        sys.stderr.flush()
        _wait_for_keys()
    line = sys.stdin.readline()
    if asked and not line:
        # Ctrl-D leaves the prompt's line open
        say("")
    return line.rstrip("\r\n") if line else None


def _wait_for_keys() -> None:
    """Until the user has typed a line, or interrupts.

    A signal between Python's last look for one and the system's read would be heeded after the next line.
    """
    # there, select knows nothing but sockets
    if sys.platform != "win32":
        while not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
            pass


def _answer(conversation: Any, line: str, settings: dict[str, Any]) -> list[str]:
    """Streams the answer to `line` and says how fast it came -> all its numbers."""
    from trisparse.cli.statistics import lines, statistics, summary
    from trisparse.cli.stopwatch import Stopwatch
    from trisparse.cli.text_stream import TextStream

    text = TextStream(conversation.tokenizer, skip_prompt=True, skip_special_tokens=True)
    watch = Stopwatch(text)
    try:
        conversation.ask(line, watch, **settings)
    except KeyboardInterrupt:
        text.end()
        say("stopped")
    numbers = statistics(conversation.model, conversation.cache, conversation.prefilled, watch)
    say(summary(numbers))
    return lines(numbers)
