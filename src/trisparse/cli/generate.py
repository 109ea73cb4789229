"""`trisparse generate`"""

import time
from pathlib import Path
from typing import Annotated

import typer

from trisparse.cli.output import print_json, say


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model or of a training run.")],
    prompt: Annotated[str, typer.Option(help="Text to go on with.")] = "def main(",
    tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print text and speed as JSON.")] = False,
) -> None:
    """Continue a prompt token by token through the cache; text streams to stdout."""
    import torch
    from transformers import TextStreamer

    from trisparse.models.load import load_model

    language_model, tokenizer = load_model(model)
    encoded = tokenizer(prompt, return_tensors="pt")
    if encoded["input_ids"].shape[1] == 0:
        raise ValueError("prompt: expected some text, got an empty prompt")
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    streamer = None if as_json else TextStreamer(tokenizer)
    began = time.perf_counter()
    ids = language_model.generate(**encoded, max_new_tokens=tokens, streamer=streamer, **sampling)[0]
    seconds = time.perf_counter() - began
    count = len(ids) - encoded["input_ids"].shape[1]
    if as_json:
        text = tokenizer.decode(ids)
        print_json({"text": text, "new_tokens": count, "tokens_per_second": round(count / seconds, 2)})
    else:
        say(f"{count} tokens, {count / seconds:.1f} tokens/s")
