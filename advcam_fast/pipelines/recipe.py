"""run: a recipe of verbs, one after the other, each in a process of its own; what is done is not done again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advcam_fast.errors import StoppedError, UsageError
from advcam_fast.store.files import write_whole
from advcam_fast.store.settings import read_toml

SOME_FAILED = 3  # the exit code of a verb that went on over images that failed


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


def read_recipe(file: Path, out: Path, verbs: Sequence[str]) -> list[Step]:
    """The steps of a TOML file: [[step]] tables of `verb`, perhaps `name`, and the verb's options without dashes.

    In texts {out} is the folder of the whole chain and {recipe} that of the file; true is a flag, a list an option
    given several times. Raises UsageError for any other file.
    """
    content = read_toml(file)
    tables = content.get("step")
    if set(content) != {"step"} or not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise UsageError(f"{file}: wanted are [[step]] tables, each with a verb and its options, and nothing else")
    steps = []
    for number, table in enumerate(tables, start=1):
        verb, name = table.pop("verb", None), table.pop("name", None)
        if verb not in verbs:
            raise UsageError(f"{file}, step {number}: verb {verb!r}, wanted is one of {', '.join(verbs)}")
        places = {"{out}": str(out), "{recipe}": str(file.parent)}
        options = [
            text for key, value in table.items() for text in _option(f"{file}, step {number}", key, value, places)
        ]
        steps.append(Step(str(name or verb), (verb, *options)))
    return steps


def _option(where: str, key: str, value: Any, places: Mapping[str, str]) -> list[str]:
    texts = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, bool):
            texts += [f"--{key.replace('_', '-')}"] if each else []
        elif isinstance(each, (str, int, float)):
            text = str(each)
            for name, place in places.items():
                text = text.replace(name, place)
            texts += [f"--{key.replace('_', '-')}", text]
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
