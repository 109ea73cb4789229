"""Values from YAML or from `key=value` texts, turned into what an annotation wants, or refused."""

import types
from typing import Any, Literal, get_args, get_origin

import yaml


def typed(key: str, wanted: Any, value: Any) -> Any:
    """`value` as the annotation `wanted`: an int may stand for a float, "1e-3" too; nothing else is bent.

    Knows Literal, bool, int, float, str, dict, `list[...]` and unions of them.

    Raises:
        ValueError: any other value, with the key, what it takes and what came.
    """
    if get_origin(wanted) in (types.UnionType,):
        return _first_that_fits(key, wanted, value)
    if get_origin(wanted) is Literal:
        return _checked(key, wanted, value, value in get_args(wanted))
    if get_origin(wanted) is list:
        _checked(key, wanted, value, isinstance(value, list))
        return [typed(key, get_args(wanted)[0], item) for item in value]
    if wanted is float:
        return _float(key, value)
    # bool is an int to Python, and `steps: true` is a mistake
    fits = isinstance(value, get_origin(wanted) or wanted) and (wanted is bool or not isinstance(value, bool))
    return _checked(key, wanted, value, fits)


def parsed(key: str, text: str, wanted: Any) -> Any:
    """The right side of `key=value`; plain text where the annotation takes a str, else read as YAML.

    Raises:
        ValueError: not YAML.
    """
    takes_text = wanted is str or get_origin(wanted) is Literal
    mixed = get_origin(wanted) is types.UnionType and str in get_args(wanted)
    if takes_text or (mixed and not text.startswith("[")):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{key}: expected {wanted_name(wanted)}, got {text!r}, which is not YAML") from error
    # YAML 1.1 takes 1e-5 for a word; where no annotation will turn it into a number, do it here
    return _number_or_same(value) if wanted is Any else value


def wanted_name(wanted: Any) -> str:
    """An annotation in words."""
    if get_origin(wanted) is Literal:
        return " or ".join(repr(choice) for choice in get_args(wanted))
    if get_origin(wanted) is types.UnionType:
        return " or ".join(wanted_name(part) for part in get_args(wanted))
    if get_origin(wanted) is dict:
        return "a mapping of names to values"
    if get_origin(wanted) is list:
        return f"a list of {wanted_name(get_args(wanted)[0])}"
    if wanted is Any:
        return "a value"
    names = {str: "a text", int: "an int", float: "a number", bool: "true or false"}
    return names.get(wanted, str(wanted))


def _first_that_fits(key: str, wanted: Any, value: Any) -> Any:
    for part in get_args(wanted):
        try:
            return typed(key, part, value)
        except ValueError:
            continue
    return _checked(key, wanted, value, fits=False)


def _checked(key: str, wanted: Any, value: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError(
            f"{key}: expected {wanted_name(wanted)}, got {type(value).__name__} {value!r}; "
            f"write `{key}: VALUE` in the recipe or {key}=VALUE on the command line"
        )
    return value


def _float(key: str, value: Any) -> float:
    number = _number_or_same(value)
    _checked(key, float, value, isinstance(number, int | float) and not isinstance(number, bool))
    return float(number)


def _number_or_same(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
