"""Deltas: from one package to the next by what changed, in a checked file of its own.

A table that was trained on for an hour differs in the rows that were read. Its delta holds those
rows as they are stored (coded, with their scales), tensors that are new or of another shape, and
the header of the newer package where it differs. It names the checksum of the package that it
starts from and of the one that it leads to: it fits no other package, and gives no other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from featemb import package
from featemb.changes import Change, changed, patched
from featemb.errors import FormatError, SchemaError
from featemb.package import Package

KIND = "delta"
_PLACES, _UNITS, _WHOLE = "places:", "units:", "whole:"
_SAME_SETTINGS = ("model", "config", "numeric")


@dataclass(frozen=True)
class Delta:
    """What a delta holds.

    Attributes:
        base: checksum of the package that it starts from.
        result: checksum of the package that it leads to.
        changed: bytes of each tensor that differs: those that the delta holds of it, and all.
        file_bytes: of the delta.
        package_bytes: of the package that it leads to.
    """

    base: str
    result: str
    changed: Mapping[str, tuple[int, int]]
    file_bytes: int
    package_bytes: int


def delta(
    old: str | os.PathLike[str], new: str | os.PathLike[str], path: str | os.PathLike[str]
) -> Delta:
    """Write what leads from one package, of a layer or a model, to another of the same schema.

    Args:
        old: the package that is in service.
        new: the package that is to take its place.
        path: the delta, written atomically.

    Raises:
        SchemaError: the packages' features differ; ship the new package whole.
        FormatError: a package cannot be read, or they hold different kinds or models.
    """
    before, after = package.read_any(old), package.read_any(new)
    _check_alike(before, after)
    tensors: dict[str, Tensor] = {}
    held = {}
    for name, one in after.tensors.items():
        parts = _parts(name, before.tensors.get(name), one)
        if parts:
            tensors |= parts
            held[name] = (sum(part.nbytes for part in parts.values()), one.nbytes)
    header = {
        "kind": KIND,
        "base": before.checksum,
        "result": after.checksum,
        "text": None if before.text == after.text else after.text,
        "dropped": sorted(set(before.tensors) - set(after.tensors)),
    }
    package.write(path, header, tensors)
    sizes = (Path(path).stat().st_size, Path(new).stat().st_size)
    return Delta(before.checksum, after.checksum, held, *sizes)


def apply_delta(
    path: str | os.PathLike[str],
    delta: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
) -> bool:
    """Bring a package up to date by a delta; the file becomes that of the newer one, bit for bit.

    The result is checked before it takes the file's place, at once. A delta that does not fit, is
    corrupt, or a process that is killed at any moment leaves the package as it was.

    Args:
        path: the package.
        delta: written by `delta` from a package of this content.
        out: where to write the result; None replaces the package.

    Returns:
        Whether anything was to be done: a package that is the delta's result already is left.

    Raises:
        FormatError: a file cannot be read, or the delta starts from another package.
    """
    before = package.read_any(path)
    after = updated(before, delta, os.fspath(path))
    if after is before and out is None:
        return False
    package.put(path if out is None else out, after)
    return after is not before


def updated(before: Package, path: str | os.PathLike[str], what: str) -> Package:
    """Return a package's content after a delta, checked; tensors that do not change are shared.

    Args:
        before: the content, which stays as it is.
        path: the delta.
        what: the package's name in errors.

    Raises:
        FormatError: the delta cannot be read, or starts from another package.
    """
    header, parts = package.read(path, KIND)
    try:
        base, result = str(header["base"]), str(header["result"])
        text = before.text if header["text"] is None else str(header["text"])
        dropped = set(header["dropped"])
    except (KeyError, TypeError) as error:
        raise FormatError(f"{os.fspath(path)!r} is no delta that is known: {error}") from error
    if before.checksum == result:
        return before
    if before.checksum != base:
        raise FormatError(
            f"{os.fspath(path)!r} starts from a package of checksum {base}, {what!r} has "
            f"{before.checksum}: apply the deltas between them first, or ship the package whole"
        )
    tensors = {name: one for name, one in before.tensors.items() if name not in dropped}
    for name, one in _changes(parts, path):
        if isinstance(one, Change) and name not in tensors:
            raise FormatError(f"{os.fspath(path)!r} changes {name!r}, which {what!r} lacks")
        tensors[name] = patched(tensors[name], one, name) if isinstance(one, Change) else one
    return _checked(Package.of(text, tensors, path), result, path)


def _parts(name: str, old: Tensor | None, new: Tensor) -> dict[str, Tensor]:
    """Return what a delta holds of a tensor: nothing, its units that changed, or all of it."""
    if old is None or old.shape != new.shape or old.dtype != new.dtype:
        return {_WHOLE + name: new}
    change = changed(old, new)
    if change is None:
        return {_WHOLE + name: new}
    if not len(change.places):
        return {}
    return {_PLACES + name: change.places, _UNITS + name: change.units}


def _checked(found: Package, result: str, path: str | os.PathLike[str]) -> Package:
    if found.checksum != result:
        raise FormatError(
            f"{os.fspath(path)!r} leads to a package of checksum {found.checksum}, it promises "
            f"{result}: nothing was changed"
        )
    return found


def _changes(
    parts: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> Iterator[tuple[str, Change | Tensor]]:
    """Yield the tensors that a delta holds, and how."""
    for key, part in parts.items():
        kind, colon, name = key.partition(":")
        if kind + colon == _WHOLE:
            yield name, part
        elif kind + colon == _UNITS and _PLACES + name in parts:
            yield name, Change(parts[_PLACES + name], part)
        elif kind + colon != _PLACES or _UNITS + name not in parts:
            raise FormatError(f"{os.fspath(path)!r} holds {key!r}, which is no part of a delta")


def _check_alike(old: Package, new: Package) -> None:
    """Refuse packages between which a delta makes no sense."""
    if KIND in (old.kind, new.kind):
        raise FormatError("a delta leads from a package to a package, not from or to a delta")
    if old.kind != new.kind:
        raise FormatError(f"the old package holds a {old.kind!r}, the new one a {new.kind!r}")
    for name in _SAME_SETTINGS:
        before, after = old.header.get(name), new.header.get(name)
        if before != after:
            raise FormatError(
                f"the packages hold different models: {name} is {before!r} in the old one, "
                f"{after!r} in the new one; ship the new package whole"
            )
    _check_schemas(_schema(old.header), _schema(new.header))


def _schema(header: Mapping[str, Any]) -> Mapping[str, Any]:
    tree: Mapping[str, Any] = header.get("layers", {}).get("embedding", header)
    found: Mapping[str, Any] = tree.get("schema", {})
    return found


def _check_schemas(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old == new:
        return
    hint = "a delta needs one schema; ship the new package whole"
    before, after = ({one["name"]: one for one in each["features"]} for each in (old, new))
    if list(before) != list(after):
        raise SchemaError(
            f"the old package has features {list(before)}, the new one {list(after)}; {hint}"
        )
    for name, one in before.items():
        for key in sorted({**one, **after[name]}):
            if one.get(key) != after[name].get(key):
                raise SchemaError(
                    f"feature {name!r} has {key} {one.get(key)!r} in the old package, "
                    f"{after[name].get(key)!r} in the new one; {hint}"
                )
    raise SchemaError(
        f"the old package has numeric columns {old.get('numeric', [])}, the new one "
        f"{new.get('numeric', [])}; {hint}"
    )
