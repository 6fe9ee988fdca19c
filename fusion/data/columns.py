"""Columns of data: found by their names, and their values as texts and as keys of `classes`."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple


def same_name(name: str) -> str:
    """The name in the one spelling (NFC) of those that look the same: macOS writes 'é' as two characters."""
    return unicodedata.normalize("NFC", name)


def same_text(text: str) -> str:
    """What texts share that differ in capitals and spaces alone."""
    return " ".join(text.casefold().split())


def column(header: Sequence[str], name: str, where: str) -> str:
    """The column of this name as the header spells it; ValueError where it is not there exactly once."""
    found = [one for one in header if same_name(one) == same_name(name)]
    if not found:
        raise ValueError(f"{where} has no column {[name]}; it has {list(header)} (config/tasks.yaml)")
    if len(found) > 1:
        raise ValueError(f"{where} has {len(found)} columns {name!r}, expected one: rename the others there")
    return found[0]


class Cells(NamedTuple):
    """The values of a column, and where each is: in a row, counted from 0, or on one of these lines."""

    column: str
    values: Sequence[Any]
    lines: Sequence[int] = ()

    def refuse(self, bad: Sequence[int], problem: str, name: str) -> None:
        """Nothing; ValueError that counts the values at these indices, and says where the first ones are."""
        if bad:
            unit, numbers = ("line", [self.lines[i] for i in bad[:10]]) if self.lines else ("row", bad[:10])
            places = ", ".join(map(str, numbers)) + (", …" if len(bad) > 10 else "")
            counted = f"{len(bad)} {unit}{'s' * (len(bad) > 1)}{'' if self.lines else ', counted from 0'}"
            raise ValueError(
                f"{name} {unit} {places}: column {self.column!r} {problem} ({counted}); correct or remove them there, "
                "or name another column (config/tasks.yaml)"
            )


def labelled(texts: Cells, labels: Cells, name: str, names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Text and class of every example of the file `name`; ValueError that says where a value is none.

    names: the classes of the labels that are whole numbers; without them, labels are what they are written as.
    """
    texts.refuse(_empty(texts), "is empty", name)
    if other := [i for i, text in enumerate(texts.values) if not _is_text(text)]:
        texts.refuse(other, f"has {repr(texts.values[other[0]])[:80]}, expected text", name)
    return list(zip(texts.values, classes_of(labels, name, names), strict=True))


def classes_of(labels: Cells, name: str, names: Sequence[str]) -> list[str]:
    """The class of every label, as `labelled` says; ValueError that says where a label is none."""
    labels.refuse(_empty(labels), "is empty", name)
    classes = [_written(label, names) for label in labels.values]
    if other := [i for i, label in enumerate(classes) if label is None]:
        wanted = f"a number below {len(names)}, that of a class," if names else "a number, true or false,"
        labels.refuse(other, f"has {repr(labels.values[other[0]])[:80]}, expected {wanted} or text", name)
    return [str(label) for label in classes]


def _empty(cells: Cells) -> list[int]:
    return [i for i, value in enumerate(cells.values) if value is None or value != value]


def _is_text(value: Any) -> bool:
    """Whether it is text that can be stored: JSON can also write halves of a character."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _written(label: Any, names: Sequence[str]) -> str | None:
    """The label as a key of `classes` is written, None of what cannot be one."""
    if isinstance(label, float | Decimal) and label % 1 == 0:
        label = int(label)
    if isinstance(label, str):
        return label
    if names:
        return names[label] if isinstance(label, int) and 0 <= label < len(names) else None
    return str(label).lower() if isinstance(label, int | float | Decimal) else None


def other_names(names: list[str], classes: Sequence[str]) -> list[str]:
    """The data set's own names of its classes where none is a key of `classes`, so that only the order counts."""
    return [] if {_folded(name) for name in names} & {_folded(key) for key in classes} else names


def class_names(names: list[str], name: str, classes: Sequence[str]) -> list[str]:
    """The class of every label that is a number, where the data set has `names` of its own.

    ValueError where these are other classes than `classes`.
    """
    if other_names(names, classes):
        if len(names) != len(classes):
            raise ValueError(f"{name} has {len(names)} classes, `classes` has {len(classes)} (config/tasks.yaml)")
        return list(classes)
    if names and sorted(map(same_name, names)) != sorted(map(same_name, classes)):
        raise ValueError(
            f"{name} has the classes {names}, `classes` has the keys {list(classes)}; expected the same names in any "
            "order, or none in common, where the order counts (config/tasks.yaml)"
        )
    return names


def _folded(name: str) -> str:
    return same_name(name).strip().casefold()
