"""`trisparse generate`"""

from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.arguments import Device, WeightDtype, placement
from trisparse.cli.output import print_json, say


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model or of a training run.")],
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on with; 'def main(' if none is given.")
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="UTF-8 file with that text.")] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "--max-new-tokens", min=1, help="New tokens at most.")
    ] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    stats: Annotated[bool, typer.Option("--stats", help="Add speed, memory and backend.")] = False,
    device: Device = "auto",
    dtype: WeightDtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print text and these numbers as JSON.")] = False,
) -> None:
    """Continue a prompt token by token through the cache; text streams to stdout."""
    import torch

    from trisparse.cli.statistics import PREFILL_CHUNK, lines, statistics, summary
    from trisparse.cli.stopwatch import Stopwatch
    from trisparse.cli.text_stream import TextStream
    from trisparse.models.cache import new_cache
    from trisparse.models.cache_name import CACHE_NAME
    from trisparse.models.load import load_model

    text = _prompt(prompt, prompt_file)
    language_model, tokenizer = load_model(model, **placement(device, dtype))
    encoded = tokenizer(text, return_tensors="pt").to(language_model.device)
    count = encoded["input_ids"].shape[1]
    if count == 0:
        raise ValueError("prompt: expected some text, got an empty prompt")
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    cache = new_cache(language_model, count + tokens)
    watch = Stopwatch(None if as_json else TextStream(tokenizer))
    ids = language_model.generate(
        **encoded,
        max_new_tokens=tokens,
        streamer=watch,
        prefill_chunk_size=PREFILL_CHUNK,
        **sampling,
        **{CACHE_NAME: cache},
    )[0]
    numbers = statistics(language_model, cache, count, watch)
    if as_json:
        print_json({"text": tokenizer.decode(ids), **numbers})
    elif stats:
        for line in lines(numbers):
            say(line)
    else:
        say(summary(numbers))


def _prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The text to go on with.

    Raises:
        ValueError: two of them, or one that is not UTF-8.
        OSError: a file that cannot be read.
    """
    if prompt is not None and prompt_file is not None:
        raise ValueError("prompt: expected either --prompt or --prompt-file")
    if prompt is not None:
        from trisparse import validate

        validate.unicode_text("prompt", prompt)
        return prompt
    if prompt_file is None:
        return "def main("
    try:
        return prompt_file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt_file: {prompt_file} is not UTF-8 at byte {error.start}") from error
