"""`Encoder`: raw columns to ids and numbers, as tensors and tensor operations.

A raw cell becomes a *token*, an int64 that any server can compute without the vocabulary:

- an integer column: the value itself;
- a text column: FNV-1a (64 bits) of its UTF-8 bytes, as a signed number;
- a column of floats: the bits of the IEEE double (-0 as 0);
- a missing cell, an empty text, NaN: -2^63.

The encoder maps tokens to ids: by a vocabulary (a binary search in its sorted tokens; what is not
in it has id 0), by a hash, or not at all. Its operations run in eager mode, torch.export,
AOTInductor and ONNX with the same result. Two values of a vocabulary with one token are refused
when it is made; a value outside of it has a token of it by chance with a probability of
(values / 2^64).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featemb.bisecting import first_not_below, take
from featemb.errors import ConfigError
from featemb.export.tokens import MISSING, Cells, value_tokens
from featemb.hashing import mix64, mix64_int
from featemb.parts.base import Part
from featemb.schema import Schema

Rule = Literal["vocabulary", "hash", "id"]
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class RawFeature:
    """How the cells of one categorical column become ids.

    Attributes:
        name: of the column and the feature.
        cells: what a cell holds: "integer", "text" or "float".
        rule: "vocabulary" (``values[i]`` has id i + 1, all else id 0), "hash" (a missing cell has
            id 0, others ``1 + hash(token) mod (cardinality - 1)``; of an unbounded feature the
            lowest 63 bits of the token), or "id" (the integers are ids already).
        values: of a vocabulary.
        multi: whether a cell holds several values.
        separator: splits a text cell of several values; None where cells are lists.
        seed: of the hash.
    """

    name: str
    cells: Cells = "integer"
    rule: Rule = "vocabulary"
    values: Any = ()
    multi: bool = False
    separator: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RawNumber:
    """How a numeric column is normalised: ``(transform(x) - mean) / deviation``; missing gives 0.

    Attributes:
        name: of the column.
        transform: "none", or "log": ``sign(x) log(1 + |x|)``.
        mean: after the transform.
        deviation: after the transform.
    """

    name: str
    transform: Literal["none", "log"] = "none"
    mean: float = 0.0
    deviation: float = 1.0


class Encoder(Part):
    """Tokens to ids, raw numbers to normalised ones. Make one with `Encoder.of`.

    Attributes:
        keys: int64 ``[V]``, the tokens of all vocabularies, ascending for each feature.
        ids: int32 ``[V]``, their ids.
        bounds: first key of each feature, and V at the end.
        names: of the features.
        cells: "integer", "text" or "float", a feature.
        rules: "vocabulary", "hash" or "id", a feature.
        sizes: ids of each feature; 0 where unbounded.
        salts: of each feature's hash.
        multi: whether a cell holds several values, a feature.
        separators: of texts with several values, "" for none.
        numeric: names of the numeric columns.
        transforms: "none" or "log", a numeric column.
        means: a numeric column.
        deviations: a numeric column.
    """

    memory_parts: ClassVar[dict[str, str]] = {"keys": "vocabulary", "ids": "vocabulary"}
    keys: Tensor
    ids: Tensor
    bounds: tuple[int, ...]
    names: tuple[str, ...]
    cells: tuple[str, ...]
    rules: tuple[str, ...]
    sizes: tuple[int, ...]
    salts: tuple[int, ...]
    multi: tuple[bool, ...]
    separators: tuple[str, ...]
    numeric: tuple[str, ...]
    transforms: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def of(
        cls, schema: Schema, features: Sequence[RawFeature], numeric: Sequence[RawNumber] = ()
    ) -> Encoder:
        """Make the encoder of a schema.

        Args:
            schema: what the ids must fit.
            features: one a feature, in the schema's order.
            numeric: one a numeric column, in the schema's order.

        Raises:
            ConfigError: the columns are not the schema's, a vocabulary has another size than its
                feature's cardinality, or two of its values share a token.
        """
        _check_columns(schema, features, numeric)
        keys, ids, bounds = [], [], [0]
        for spec, raw in zip(schema.features, features, strict=True):
            tokens, order = _vocabulary(raw, spec.cardinality)
            keys.append(tokens)
            ids.append(order)
            bounds.append(bounds[-1] + len(tokens))
        if not bounds[-1]:  # a search needs a key
            keys, ids = [np.array([MISSING])], [np.zeros(1, np.int64)]
        return cls(
            keys=torch.from_numpy(np.concatenate(keys).astype(np.int64)),
            ids=torch.from_numpy(np.concatenate(ids).astype(np.int32)),
            bounds=tuple(bounds),
            names=schema.names,
            cells=tuple(raw.cells for raw in features),
            rules=tuple(raw.rule for raw in features),
            sizes=tuple(spec.cardinality or 0 for spec in schema.features),
            salts=tuple(_salt(raw.seed, f) for f, raw in enumerate(features)),
            multi=tuple(raw.multi for raw in features),
            separators=tuple(raw.separator or "" for raw in features),
            numeric=schema.numeric,
            transforms=tuple(raw.transform for raw in numeric),
            means=tuple(float(raw.mean) for raw in numeric),
            deviations=tuple(float(raw.deviation) for raw in numeric),
        )

    def forward(self, tokens: Tensor, feature: Tensor) -> Tensor:
        """Return ids int64 ``[...]`` of tokens int64 ``[...]`` of broadcastable features.

        A feature of ids passes its own on, wrong ones too.
        """
        device = tokens.device
        found = tokens
        if "vocabulary" in self.rules:
            found = self._looked_up(tokens, feature)
        if "hash" in self.rules:
            hashed = torch.tensor([rule == "hash" for rule in self.rules], device=device)[feature]
            found = torch.where(hashed, self._hashed(tokens, feature), found)
        if "id" in self.rules and "vocabulary" in self.rules:
            own = torch.tensor([rule == "id" for rule in self.rules], device=device)[feature]
            found = torch.where(own, tokens, found)
        return found

    def _looked_up(self, tokens: Tensor, feature: Tensor) -> Tensor:
        bounds = torch.tensor(self.bounds, device=tokens.device)
        start, stop = bounds[feature], bounds[feature + 1]
        longest = max(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))
        place = first_not_below(self.keys, tokens, start, stop, longest)
        inside = place.clamp(max=self.keys.shape[0] - 1)
        known = (place < stop) & (take(self.keys, inside) == tokens)
        return torch.where(known, take(self.ids, inside).long(), 0)

    def _hashed(self, tokens: Tensor, feature: Tensor) -> Tensor:
        salts = torch.tensor(self.salts, device=tokens.device)[feature]
        sizes = torch.tensor(self.sizes, device=tokens.device)[feature]
        mixed = mix64(tokens + salts) & _LARGEST
        inside = 1 + mixed % (sizes - 1).clamp(min=1)
        inside = torch.where(tokens == MISSING, 0, inside).minimum((sizes - 1).clamp(min=0))
        return torch.where(sizes > 0, inside, tokens & _LARGEST)

    def numbers(self, raw: Tensor) -> Tensor:
        """Return fp32 ``[B, M]`` of raw numbers fp64 ``[B, M]``; NaN is missing and gives 0."""
        logs = torch.tensor([one == "log" for one in self.transforms], device=raw.device)
        means = torch.tensor(self.means, dtype=torch.float64, device=raw.device)
        deviations = torch.tensor(self.deviations, dtype=torch.float64, device=raw.device)
        missing = torch.isnan(raw)
        known = torch.where(missing, 0.0, raw)
        moved = torch.where(logs, torch.sign(known) * torch.log1p(known.abs()), known)
        scaled = (moved - means) / deviations
        return torch.where(missing, 0.0, scaled).float()

    @torch.no_grad()
    def tokens_of(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return tokens int64 that have some ids; a hashed feature's id as it is.

        For examples: an id 0 of a vocabulary gives the token of a missing cell.
        """
        found = ids.clone()
        for f, rule in enumerate(self.rules):
            own = (feature == f).expand(ids.shape)
            if rule == "vocabulary":
                table = torch.full((max(self.sizes[f], 1),), MISSING)
                run = slice(self.bounds[f], self.bounds[f + 1])
                table[self.ids[run].long()] = self.keys[run]
                found[own] = table[ids[own]]
        return found

    @torch.no_grad()
    def raw_numbers(self, numbers: Tensor) -> Tensor:
        """Return raw fp64 numbers ``[B, M]`` that normalise to some, up to rounding."""
        means = torch.tensor(self.means, dtype=torch.float64)
        moved = numbers.double() * torch.tensor(self.deviations, dtype=torch.float64) + means
        logs = torch.tensor([one == "log" for one in self.transforms])
        return torch.where(logs, torch.sign(moved) * torch.expm1(moved.abs()), moved)


def _check_columns(
    schema: Schema, features: Sequence[RawFeature], numeric: Sequence[RawNumber]
) -> None:
    for what, given, wanted in (
        ("features", [raw.name for raw in features], list(schema.names)),
        ("numeric columns", [raw.name for raw in numeric], list(schema.numeric)),
    ):
        if given != wanted:
            raise ConfigError(f"an encoder's {what} must be the schema's {wanted}, got {given}")
    for spec, raw in zip(schema.features, features, strict=True):
        if spec.multi != raw.multi:
            raise ConfigError(
                f"feature {raw.name!r}: multi is {spec.multi} in the schema and {raw.multi} in "
                "the encoder"
            )
        if raw.rule == "id" and raw.cells != "integer":
            raise ConfigError(f"feature {raw.name!r}: ids are integers, not {raw.cells} cells")
        if raw.rule == "vocabulary" and spec.cardinality is None:
            raise ConfigError(f"feature {raw.name!r} is unbounded: it has no vocabulary")


Pair = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _vocabulary(raw: RawFeature, cardinality: int | None) -> Pair:
    """Return the sorted tokens of a vocabulary and their ids."""
    if raw.rule != "vocabulary":
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    tokens = value_tokens(raw.values, raw.cells, raw.name)
    if len(tokens) + 1 != cardinality:
        raise ConfigError(
            f"feature {raw.name!r} has {cardinality} ids, so its vocabulary needs "
            f"{(cardinality or 1) - 1} values (id 0 is unknown), got {len(tokens)}"
        )
    order = np.argsort(tokens, kind="stable")
    ordered = tokens[order]
    if (ordered[1:] == ordered[:-1]).any() or (ordered == MISSING).any():
        raise ConfigError(
            f"feature {raw.name!r}: two values of its vocabulary have one token, or one has the "
            "token of a missing cell; they cannot be told apart when served"
        )
    return ordered, order + 1


def _salt(seed: int, feature: int) -> int:
    value = mix64_int((seed << 20) + feature + 1)
    return value - (1 << 64) if value >> 63 else value


def from_tree(tree: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> Encoder:
    """Rebuild an encoder that a file describes."""
    made = Part.rebuild(tree, tensors, prefix)
    if not isinstance(made, Encoder):
        raise ConfigError(f"a {type(made).__name__} is no encoder")
    return made
