"""run: a recipe of verbs, one after the other, each in a process of its own; what is done is not done again."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.store.files import write_whole
from advcam_fast.store.settings import read_toml

SOME_FAILED = 3  # the exit code of a verb that went on over images that failed
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Step:
    """A verb with its arguments, and a name for the table."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """How a step ended: exit code 0 or 3, its seconds, and what its --json said."""

    code: int
    seconds: float
    summary: Mapping[str, Any]


def read_recipe(file: Path, out: Path, verbs: Sequence[str], settings: Iterable[str] = ()) -> list[Step]:
    """The steps of a TOML file: [[step]] tables of `verb`, perhaps `name`, and the verb's options without dashes.

    A table [paths] says what files or folders are needed: a name and what it is. In texts {name} is that path, {out}
    the folder of the whole chain and {recipe} that of the file; true is a flag, a list an option given several times.
    settings: "name=PATH" gives a path, "STEP.OPTION=VALUE" an option of the steps of a name; one that may come several
    times once more. Raises UsageError for any other file or setting, and for a path that is missing.
    """
    content = read_toml(file)
    tables, paths = content.get("step"), content.get("paths", {})
    right = isinstance(tables, list) and all(isinstance(one, dict) for one in tables) and isinstance(paths, dict)
    if not right or not set(content) <= {"step", "paths"}:
        raise UsageError(
            f"{file}: wanted are [[step]] tables, each with a verb and its options, perhaps [paths], and nothing else"
        )
    assert isinstance(tables, list)
    given = dict(_setting(text) for text in settings if "." not in text.partition("=")[0])
    places = {"out": str(out), "recipe": str(file.parent), **_paths(file, paths, given)}
    for table in tables:
        table.setdefault("name", table.get("verb"))
    for text in settings:
        if "." in text.partition("=")[0]:
            _change(file, tables, *_setting(text))
    return [_step(f"{file}, step {number}", table, verbs, places) for number, table in enumerate(tables, start=1)]


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--set {text!r}: wanted is NAME=PATH or STEP.OPTION=VALUE")
    return key, value


def _paths(file: Path, wanted: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """The paths that a recipe needs; UsageError where one is not given, not there, or of another name."""
    for name in given:
        if name not in wanted:
            raise UsageError(f"--set {name}=...: {file} asks for {', '.join(wanted) or 'no path'}")
    for name, what in wanted.items():
        if name not in given:
            raise UsageError(f"{file} needs {name}: {what}; add --set {name}=PATH")
        if not Path(given[name]).exists():
            raise UsageError(f"--set {name}={given[name]}: nothing is there; wanted is {what}")
    return dict(given)


def _change(file: Path, tables: Sequence[dict[str, Any]], key: str, text: str) -> None:
    name, _, option = key.rpartition(".")
    option = option.replace("-", "_")
    found = [table for table in tables if table["name"] == name]
    if not found:
        names = dict.fromkeys(str(table["name"]) for table in tables)
        raise UsageError(f"--set {key}={text}: {file} has no step {name!r}, there are {', '.join(names)}")
    value = {"true": True, "false": False}.get(text, text)
    for table in found:
        before = table.get(option, [] if option == "set" else None)
        table[option] = [*before, value] if isinstance(before, list) else value


def _step(where: str, table: dict[str, Any], verbs: Sequence[str], places: Mapping[str, str]) -> Step:
    verb, name = table.pop("verb", None), table.pop("name", None)
    if verb not in verbs:
        raise UsageError(f"{where}: verb {verb!r}, wanted is one of {', '.join(verbs)}")
    options = [text for key, value in table.items() for text in _option(where, key, value, places)]
    return Step(str(name), (verb, *options))


def _option(where: str, key: str, value: Any, places: Mapping[str, str]) -> list[str]:
    def place(found: re.Match[str]) -> str:
        if found[1] not in places:
            raise UsageError(f"{where}: {key} has {found[0]}, there are {', '.join(f'{{{name}}}' for name in places)}")
        return places[found[1]]

    texts = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, bool):
            texts += [f"--{key.replace('_', '-')}"] if each else []
        elif isinstance(each, (str, int, float)):
            texts += [f"--{key.replace('_', '-')}", _PLACE.sub(place, str(each))]
        else:
            raise UsageError(f"{where}: {key} = {each!r}, wanted is a text, a number, true or a list of them")
    return texts


class Chain:
    """The steps of a recipe and what is done of them, which lies in OUT/steps."""

    def __init__(self, steps: Sequence[Step], out: Path) -> None:
        self.steps, self._folder = steps, out / "steps"

    def done(self, number: int) -> Done | None:
        """How a step ended, if it did, with these arguments and after these steps."""
        try:
            noted = json.loads(self._file(number).read_bytes())
            return Done(**noted["done"]) if noted["chain"] == self._digest(number) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def run(self, number: int) -> Done:
        """Runs a step, and notes that it is done; UsageError or StoppedError where its own exit code says so."""
        step, begin = self.steps[number], time.monotonic()
        command = [sys.executable, "-m", "advcam_fast", *step.arguments, "--json"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if ended.returncode in (130, -2):
            raise KeyboardInterrupt
        if ended.returncode not in (0, SOME_FAILED):
            kind = UsageError if ended.returncode == 2 else StoppedError
            raise kind(f"step {number + 1}, {step.name}, ended with code {ended.returncode}; the same command goes on")
        summary = json.loads(ended.stdout)
        done = Done(ended.returncode, round(time.monotonic() - begin, 1), summary)
        file = self._file(number)
        noted = {"arguments": step.arguments, "chain": self._digest(number), "done": asdict(done)}
        write_whole(file, json.dumps(noted, indent=1).encode(), file.with_suffix(".tmp"))
        return done

    def _file(self, number: int) -> Path:
        return self._folder / f"{number + 1}.json"

    def _digest(self, number: int) -> str:
        return hashlib.sha256(json.dumps([step.arguments for step in self.steps[: number + 1]]).encode()).hexdigest()
