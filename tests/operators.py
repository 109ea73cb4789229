"""Which operators are called."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Counts the operators that are called inside, by name: "trisparse.decode_forward.default"."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))

    def ours(self) -> dict[str, int]:
        """How often each of our operators was called, by its own name."""
        names = {name: name.split(".") for name in self.calls}
        return {name: self.calls[full] for full, (room, name, _) in names.items() if room == "trisparse"}
