"""Brings the class names of a data set together with those of a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from advcam_fast.data.text_files import read_rows
from advcam_fast.errors import UsageError


class ClassNames:
    """An ordered list of class names that finds a class by name or index; `where` names the list in errors."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        self.names = tuple(names)
        self._where = where
        # The first of these tables that knows a name decides: so "crane" means the class called just that, even where
        # another class has it as a synonym.
        self._tables: tuple[dict[str, set[int]], ...] = ({}, {}, {})
        for index, name in enumerate(self.names):
            for table, keys in zip(self._tables, _keys(name), strict=True):
                for key in keys:
                    table.setdefault(key, set()).add(index)

    def index(self, label: str) -> int | None:
        """The class a label means, or None.

        Tried in turn: the exact name; the name ignoring case, with _ as a space; a shared synonym of comma-separated
        names as ImageNet has them; a number as an index. Raises UsageError for a label that fits several classes
        and for an index outside the list.
        """
        for table, keys in zip(self._tables, _keys(label), strict=True):
            found = sorted(set().union(*(table.get(key, set()) for key in keys)))
            if len(found) > 1:
                raise UsageError(f"label {label!r} fits {self._where}'s classes {', '.join(map(str, found))} alike")
            if found:
                return found[0]
        if not re.fullmatch(r"-?[0-9]+", label):
            return None
        if not 0 <= int(label) < len(self.names):
            raise UsageError(f"class index {label} is outside {self._where}: {len(self.names)} classes, counted from 0")
        return int(label)

    def close_to(self, label: str) -> list[str]:
        """Up to three names that look like the label."""
        keys = difflib.get_close_matches(_plain(label), self._tables[2], n=3)
        return [self.names[min(self._tables[2][key])] for key in keys]

    def unknown(self, labels: Sequence[str]) -> str:
        """Names the labels that mean no class, for an error; close matches for the first ten."""
        shown = []
        for i, label in enumerate(labels):
            close = self.close_to(label) if i < 10 else []
            shown.append(f"{label!r} (close: {', '.join(map(repr, close))})" if close else repr(label))
        return ", ".join(shown)


def match_labels(
    names: Iterable[str], class_names: Sequence[str], class_map: str | Path | None = None
) -> dict[str, int]:
    """Maps every class name of a data set to a class index of the model, by the rules of ClassNames.index.

    A model without names passes its indices as names. `class_map` is a CSV of two columns, data set name and model
    name or index (a first row `dataset,model` is skipped), that overrides; names the data set lacks are no error, so
    one map serves several sets. Raises UsageError listing every name that matches no class, with close matches.
    """
    head = ClassNames(class_names, "the model's head")
    mapping = _read_class_map(Path(class_map), head) if class_map is not None else {}
    unmatched = []
    for name in names:
        if name in mapping:
            continue
        index = head.index(name)
        if index is None:
            unmatched.append(name)
        else:
            mapping[name] = index
    if unmatched:
        raise UsageError(
            f"{len(unmatched)} of the data's labels match no class of the model: {head.unknown(unmatched)}; "
            "name the classes with --class-map CSV"
        )
    return mapping


def _read_class_map(path: Path, head: ClassNames) -> dict[str, int]:
    mapping: dict[str, int] = {}
    for number, fields in read_rows(path):
        if len(fields) != 2 or not all(fields):
            raise UsageError(f"{path}, line {number}: wanted two columns, data set name and model name or index")
        name, target = fields
        if not mapping and fields == ["dataset", "model"]:
            continue
        index = head.index(target)
        if index is None:
            raise UsageError(f"{path}, line {number}: no class of the model is called {head.unknown([target])}")
        if mapping.setdefault(name, index) != index:
            raise UsageError(f"{path}, line {number}: {name!r} is mapped to classes {mapping[name]} and {index}")
    return mapping


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _keys(name: str) -> tuple[list[str], list[str], list[str]]:
    return [name], [_plain(name)], [_plain(part) for part in name.split(",") if part.strip()]
