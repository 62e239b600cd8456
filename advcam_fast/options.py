"""What the configurations have in common: presets by name, changes by `key=value`, and errors that name the option."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from advcam_fast.errors import UsageError

T = TypeVar("T")


def check_option(name: str, value: Any, right: bool, wanted: str) -> None:
    if not right:
        raise UsageError(f"{name}: {value} came, wanted is {wanted}")


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def preset_of(presets: Mapping[str, T], name: str) -> T:
    """Raises UsageError naming the presets there are."""
    if name not in presets:
        near = difflib.get_close_matches(name, presets, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no preset {name!r}, there are {', '.join(presets)}{hint}")
    return presets[name]


def parsed_like(value: Any, text: str) -> Any:
    """A text as a value of the type of another: true or false, a number, numbers with commas, or itself."""
    if isinstance(value, bool):
        return {"true": True, "false": False}[text.lower()]
    if isinstance(value, tuple):
        return tuple(float(number) for number in text.split(","))
    return type(value)(text)


def changes_of(config: Any, settings: Iterable[str], parse: Callable[[str, str], Any]) -> dict[str, Any]:
    """Texts such as "steps=10" as fields of a dataclass; `parse` makes a field's value and may raise ValueError."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        known = [field.name for field in dataclasses.fields(config)]
        if not equals or key not in known:
            raise UsageError(f"--set {setting!r}: wanted is KEY=VALUE with a key of {', '.join(known)}")
        try:
            changes[key] = parse(key, text)
        except (ValueError, KeyError):
            raise UsageError(f"--set {key}={text}: that is no value for {key}") from None
    return changes
