"""Registered data sets, and `load`."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featemb.datasets.cache import encoded
from featemb.datasets.dataset import Dataset
from featemb.datasets.recipe import Recipe
from featemb.datasets.shard_index import is_sharded
from featemb.datasets.source import Source
from featemb.errors import DataError, nearest


@dataclass(frozen=True)
class Protocol:
    """A registered data set.

    Attributes:
        name: registered name.
        summary: one line: what a row is, what the label means.
        terms: licence or terms, as their owner states them.
        prepare: root folder (and options) -> source and recipe; its docstring is the protocol.
    """

    name: str
    summary: str
    terms: str
    prepare: Callable[..., tuple[Source, Recipe]]


_PROTOCOLS: dict[str, Protocol] = {}
_BUILT: dict[str, Callable[..., Dataset]] = {}
_discovered = False


def protocol(name: str, summary: str, terms: str) -> Callable[..., Any]:
    """Decorator: register ``prepare(root, **options) -> (Source, Recipe)`` as a data set."""

    def enter(prepare: Callable[..., tuple[Source, Recipe]]) -> Callable[..., Any]:
        _PROTOCOLS[name] = Protocol(name, summary, terms, prepare)
        return prepare

    return enter


def built(name: str) -> Callable[..., Any]:
    """Decorator: register a function that makes a data set in memory."""

    def enter(make: Callable[..., Dataset]) -> Callable[..., Dataset]:
        _BUILT[name] = make
        return make

    return enter


def _discover() -> None:
    global _discovered
    if not _discovered:
        _discovered = True
        package = importlib.import_module("featemb.datasets")
        for found in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"featemb.datasets.{found.name}")


def names() -> list[str]:
    """Return the names of all registered data sets, sorted."""
    _discover()
    return sorted([*_PROTOCOLS, *_BUILT])


def find(name: str) -> Protocol:
    """Return a registered data set's protocol.

    Raises:
        DataError: there is none of that name, or it is made without files.
    """
    _discover()
    if name in _BUILT:
        raise DataError(f"data set {name!r} is made by a function: it has no protocol")
    if name not in _PROTOCOLS:
        raise DataError(f"unknown data set {name!r}; {nearest(name, names())}")
    return _PROTOCOLS[name]


def describe(name: str) -> tuple[str, str]:
    """Return what a row and the label of a registered data set are, and its terms.

    Raises:
        DataError: there is none of that name.
    """
    _discover()
    if name in _BUILT:
        return (inspect.getdoc(_BUILT[name]) or "").split("\n")[0], "made by this package"
    protocol = find(name)
    return protocol.summary, protocol.terms


def data_roots(root: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders searched for data.

    The one given; else $FEATEMB_DATA, ``../shared/data`` beside the checkout, and ``./data``.
    """
    if root is not None:
        return [Path(root)]
    given = os.environ.get("FEATEMB_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return [*([Path(given)] if given else []), beside, Path("data")]


def locate(root: str | os.PathLike[str] | None, *candidates: str) -> Path:
    """Return the first candidate (a file or folder) that is there.

    Args:
        root: a folder to search, or one of the candidates itself; None searches `data_roots`.
        candidates: relative paths, in order of preference.

    Raises:
        DataError: none is there; the message says what was looked for and where.
    """
    for folder in data_roots(root):
        if any(folder.name == Path(candidate).name for candidate in candidates) and folder.exists():
            return folder
        for candidate in candidates:
            if (folder / candidate).exists():
                return folder / candidate
    where = ", ".join(str(folder) for folder in data_roots(root))
    raise DataError(
        f"found none of {', '.join(candidates)} in {where}; "
        "give the folder as root, or set FEATEMB_DATA"
    )


def load(
    name: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    schema: str | os.PathLike[str] | None = None,
    label: str | None = None,
    recipe: Recipe | None = None,
    **options: Any,
) -> Dataset:
    """Load a data set, encoding it on first use.

    Args:
        name: a registered name (`names`), or the path of a Parquet, CSV or TSV file, or of a folder
            of encoded shards, whose rows stay on disk.
        root: folder of the original files, or the file itself; None searches `data_roots`.
        cache: folder of encoded data; None takes $FEATEMB_CACHE or ~/.cache/featemb.
        schema: for a path: a recipe's JSON file, as `infer` writes it.
        label: for a path: the label's column, from which a recipe is inferred.
        recipe: for a path: the recipe itself.
        options: of the registered data set; for a path without a recipe, of `infer`; for a folder
            of shards, of `featemb.datasets.open_shards`.

    Raises:
        DataError: the data are missing or malformed, or an option is unknown.
    """
    text = os.fspath(name)
    if text in names():
        if schema is not None or label is not None or recipe is not None:
            raise DataError(
                f"{text!r} has its own protocol: schema, label and recipe are for files"
            )
        return _load_registered(text, root, cache, options)
    from featemb.datasets.infer import own_table

    if is_sharded(text):
        if schema is not None or label is not None or recipe is not None:
            raise DataError(f"{text!r} is encoded: schema, label and recipe are for tables")
        return _opened(text, options)
    if not Path(text).exists():
        raise DataError(f"{text!r} is neither a data set nor a file; {nearest(text, names())}")
    return own_table(Path(text), cache, schema, label, recipe, options)


def _opened(folder: str, options: dict[str, Any]) -> Dataset:
    from featemb.datasets.sharded import open_shards

    allowed = list(inspect.signature(open_shards).parameters)[1:]
    for option in options:
        if option not in allowed:
            raise DataError(f"{folder}: unknown option {option!r}; {nearest(option, allowed)}")
    return open_shards(folder, **options)


def _load_registered(
    name: str,
    root: str | os.PathLike[str] | None,
    cache: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> Dataset:
    if name in _BUILT:
        _check_options(name, _BUILT[name], options)
        return _BUILT[name](**options)
    source, recipe, meta = prepared(name, root, options)
    return encoded(name, source, recipe, cache, meta)


def _check_options(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    allowed = [option for option in inspect.signature(make).parameters if option != "root"]
    for option in options:
        if option not in allowed:
            raise DataError(f"{name}: unknown option {option!r}; {nearest(option, allowed)}")


def prepared(
    name: str, root: str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> tuple[Source, Recipe, dict[str, Any]]:
    """Return source, recipe and facts of a registered data set.

    Raises:
        DataError: there is no such set, its files are missing, or an option is unknown.
    """
    known = find(name)
    _check_options(name, known.prepare, options)
    source, recipe = known.prepare(root, **options)
    meta = {
        "summary": known.summary,
        "terms": known.terms,
        "protocol": inspect.getdoc(known.prepare) or "",
        "source": [path.name for path in source.files],
        **source.notes,
    }
    return source, recipe, meta
