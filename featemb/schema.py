"""`Feature` and `Schema`: what goes into an embedding layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from featemb.errors import SchemaError, nearest

Pooling = Literal["sum", "mean", "max"]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Feature:
    """One categorical feature.

    Attributes:
        name: column name, unique in its schema.
        cardinality: number of ids; valid ids are ``0 <= id < cardinality``. None means unbounded:
            any non-negative int64, which only hash-addressed methods can take.
        multi: whether a sample holds a bag of ids rather than exactly one.
        pooling: how a bag's vectors become one: sum, mean or max; an empty bag gives zeros.
        max_length: longest bag, where known (padding, exports).
        counts: occurrences of each id in the training split, int64 ``[cardinality]``, where known.

    Raises:
        SchemaError: a value above is not allowed.
    """

    name: str
    cardinality: int | None = None
    multi: bool = False
    pooling: Pooling = "sum"
    max_length: int | None = None
    counts: Counts | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise SchemaError(f"a feature's name must be a non-empty string, got {self.name!r}")
        self._check_positive("cardinality")
        self._check_positive("max_length")
        if not isinstance(self.multi, bool):
            raise SchemaError(
                f"feature {self.name!r}: multi must be true or false, got {self.multi!r}"
            )
        if self.pooling not in get_args(Pooling):
            hint = nearest(str(self.pooling), get_args(Pooling))
            raise SchemaError(f"feature {self.name!r}: unknown pooling {self.pooling!r}; {hint}")
        if self.counts is not None:
            object.__setattr__(self, "counts", self._checked_counts(self.counts))

    def _check_positive(self, attribute: str) -> None:
        value = getattr(self, attribute)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise SchemaError(
                f"feature {self.name!r}: {attribute} must be a positive integer or None, "
                f"got {value!r}"
            )
        object.__setattr__(self, attribute, int(value))

    def _checked_counts(self, counts: Any) -> Counts:
        try:
            array = np.asarray(counts)
        except ValueError as error:
            raise SchemaError(f"feature {self.name!r}: counts are no array: {error}") from error
        if array.shape != (self.cardinality,):
            raise SchemaError(
                f"feature {self.name!r}: counts must have shape ({self.cardinality},), "
                f"got {array.shape}"
            )
        if not np.issubdtype(array.dtype, np.integer) or (array < 0).any():
            raise SchemaError(f"feature {self.name!r}: counts must be integers >= 0")
        frozen = array.astype(np.int64)
        frozen.flags.writeable = False
        return frozen


@dataclass(frozen=True)
class Schema:
    """An ordered set of features, and the names of the numeric columns beside them.

    Args:
        features: one or more `Feature`, with distinct names.
        numeric: names of numeric columns; they pass by the embedding layer to the model.

    Raises:
        SchemaError: no feature, or a name used twice.
    """

    features: tuple[Feature, ...]
    numeric: tuple[str, ...] = ()

    def __init__(self, features: Iterable[Feature], numeric: Iterable[str] = ()) -> None:
        object.__setattr__(self, "features", tuple(features))
        object.__setattr__(self, "numeric", tuple(numeric))
        for name in self.numeric:
            if not isinstance(name, str) or not name:
                raise SchemaError(f"a numeric column's name must be a string, got {name!r}")
        for feature in self.features:
            if not isinstance(feature, Feature):
                raise SchemaError(f"a schema holds Feature objects, got {feature!r}")
        if not self.features:
            raise SchemaError("a schema needs at least one feature, got none")
        seen: set[str] = set()
        for name in (*self.names, *self.numeric):
            if name in seen:
                raise SchemaError(f"feature {name!r} appears twice in the schema")
            seen.add(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categorical features, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def num_features(self) -> int:
        """Number of categorical features, F."""
        return len(self.features)

    @property
    def single_valued(self) -> bool:
        """Whether no feature is multi-valued, so that ids may come as a ``[B, F]`` tensor."""
        return not any(feature.multi for feature in self.features)

    @property
    def bounded(self) -> bool:
        """Whether every feature has a known cardinality."""
        return all(feature.cardinality is not None for feature in self.features)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Cardinality of each feature.

        Raises:
            SchemaError: a feature is unbounded.
        """
        for feature in self.features:
            if feature.cardinality is None:
                raise SchemaError(
                    f"feature {feature.name!r} is unbounded: this needs a cardinality "
                    "(only hash-addressed methods take unbounded ids)"
                )
        return tuple(int(feature.cardinality or 0) for feature in self.features)

    def index(self, name: str) -> int:
        """Position of a feature by name.

        Raises:
            SchemaError: there is no such feature.
        """
        if name not in self.names:
            raise SchemaError(f"unknown feature {name!r}; {nearest(name, self.names)}")
        return self.names.index(name)

    def full_bytes(self, dim: int) -> int:
        """Bytes of the plain fp32 tables of this schema at width ``dim``."""
        return 4 * dim * sum(self.cardinalities)

    def with_counts(self, counts: Mapping[str, Any]) -> Schema:
        """Return a copy whose named features carry these training counts."""
        for name in counts:
            self.index(name)
        features = (replace(f, counts=counts.get(f.name, f.counts)) for f in self.features)
        return Schema(features, self.numeric)

    def without_counts(self) -> Schema:
        """Return a copy without training counts (small, for files)."""
        return Schema((replace(f, counts=None) for f in self.features), self.numeric)

    def to_json(self) -> str:
        """Return the schema as JSON text; defaults are left out, counts are kept where known."""
        defaults = asdict(Feature("_"))
        features = []
        for feature in self.features:
            entry = {k: v for k, v in vars(feature).items() if k == "name" or k != "counts"}
            entry = {k: v for k, v in entry.items() if k == "name" or v != defaults[k]}
            if feature.counts is not None:
                entry["counts"] = feature.counts.tolist()
            features.append(entry)
        document: dict[str, Any] = {"features": features}
        if self.numeric:
            document["numeric"] = list(self.numeric)
        return json.dumps(document, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read the text that `to_json` writes.

        Raises:
            SchemaError: the text is not JSON, or holds an unknown field or value.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise SchemaError(f"a schema must be JSON: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("features"), list):
            raise SchemaError('a schema is a JSON object with a list "features"')
        _refuse_unknown(document, ("features", "numeric"), "schema")
        if not isinstance(document.get("numeric", []), list):
            raise SchemaError(f'"numeric" is a list of names, got {document["numeric"]!r}')
        features = []
        for entry in document["features"]:
            if not isinstance(entry, dict) or "name" not in entry:
                raise SchemaError(f"a feature is a JSON object with a name, got {entry!r}")
            _refuse_unknown(entry, tuple(Feature.__dataclass_fields__), f"feature {entry['name']}")
            features.append(Feature(**entry))
        return cls(features, document.get("numeric", ()))


def _refuse_unknown(entry: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in allowed:
            raise SchemaError(f"{where}: unknown field {key!r}; {nearest(key, allowed)}")
