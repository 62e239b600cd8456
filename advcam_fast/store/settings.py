"""run.toml: everything that is needed to repeat a run."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advcam_fast.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def plain_settings(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings as TOML will give them back: keys as text, tuples as lists, paths as text, None left out.

    Raises UsageError for a value that TOML cannot hold.
    """
    return {_plain("name", str(key)): _plain(str(key), value) for key, value in settings.items() if value is not None}


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain_settings(value)
    if isinstance(value, (list, tuple)):
        return [_plain(key, element) for element in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (str, Path)) and not any("\ud800" <= character <= "\udfff" for character in str(value)):
        return str(value)
    raise UsageError(f"setting {key}: {value!r}, wanted Unicode text, a finite number, a list or a table")


def to_toml(settings: Mapping[str, Any]) -> str:
    """Writes plain settings as TOML, tables after the values of their parent."""
    return "\n".join(_lines(settings, ())) + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"\n[{'.'.join(map(_key, path))}]"] if path else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, (*path, key))
    return lines


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(element)}" for key, element in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else repr(value)


def _key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _text(key)


def _text(text: str) -> str:
    # JSON's escapes are all TOML's too; only DEL is raw in the one and forbidden in the other
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a TOML file; raises UsageError if it cannot be read or is none."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file}: {' '.join(str(error).split())}") from error


def read_run_toml(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a run and, apart, its `info` table; raises UsageError if there is no such file or no TOML."""
    if not file.is_file():
        raise UsageError(f"{file.parent} is no run folder: {file.name}: No such file or directory")
    settings = read_toml(file)
    info = settings.pop("info", {})
    return settings, info


def check_unchanged(file: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises UsageError that names each setting that differs, old -> new."""
    before, after = _flat(old), _flat(new)
    changes = [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if (key in before) != (key in after) or before[key] != after[key]
    ]
    if changes:
        changed = "; ".join(changes)
        raise UsageError(
            f"{file.parent} holds a run with other settings ({changed}): repeat those or use another folder"
        )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{_key(key)}.")
        else:
            flat[f"{prefix}{_key(key)}"] = value
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return _value(flat[key]) if key in flat else "absent"
