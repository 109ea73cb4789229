"""Numbers and lists as they read in a sentence."""

import math
from collections.abc import Sequence


def plain(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent; whole digits are never dropped."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def titled(words: str) -> str:
    """`words` with a capital at the start; capitals further on stay."""
    return words[:1].upper() + words[1:]


def percent(share: float) -> str:
    """A share of 0..1 in whole percent, but never a rounded 0 or 100 that was not one."""
    rounded = round(100 * share)
    if rounded == 0 and share > 0:
        return "under 1%"
    if rounded == 100 and share < 1:
        return "over 99%"
    return f"{rounded}%"


def millions(tokens: int) -> str:
    """A count of tokens as a reader says it."""
    return f"{plain(tokens / 1e6)} million" if tokens >= 1_000_000 else f"{tokens}"


def short_count(tokens: float) -> str:
    """`512`, `1k`, `16k`: an axis label for a context length."""
    whole = int(tokens)
    return f"{whole // 1024}k" if whole and whole % 1024 == 0 else f"{whole}"
