"""`FeatureEmbeddingBagCollection`: featemb layers in place of TorchRec's collection of tables.

Shape letters: B samples, N ids, D width of a table.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featemb.budget import parse_bytes
from featemb.build import check_request, embedding
from featemb.errors import ConfigError, IdError, SchemaError, nearest
from featemb.parts import Concat, Lookup, OffsetAddress
from featemb.rows import RowTable
from featemb.spec import Spec
from featemb.torchrec.bags import (
    check_tables,
    check_widths,
    divide,
    schema_of,
    sum_bags,
    weights_of,
    whole_batch,
)
from featemb.torchrec.rows import require_torchrec


class FeatureEmbeddingBagCollection(nn.Module):
    """A ``KeyedJaggedTensor`` in, a ``KeyedTensor`` out: TorchRec's ``EmbeddingBagCollection``.

    Keys, their order and their widths are TorchRec's: tables in order, each with its features, and
    ``feature@table`` where several tables embed one feature. Weighted and empty bags and a batch
    size of its own for each feature (with inverse indices) are what they are there. So in a model
    such as TorchRec's DLRM it takes the collection's place::

        DLRM(FeatureEmbeddingBagCollection(tables, "unified(lookups=2)", ratio=50), ...)

    Tables of one width are one featemb layer, whose features are the tables: features that share a
    table in TorchRec share its ids here, and methods that share rows do so among these tables.

    Args:
        tables: ``EmbeddingBagConfig``s, whose rows are trained in fp32 whatever their data type.
        method: method and codec, as for `featemb.embedding`.
        ratio: compression ratio of every layer.
        budget: serving bytes of all layers together, shared out by the bytes of their plain tables,
            but each gets what the method needs at least. At most one of the two.
        is_weighted: whether bags have a weight for each id.
        seed: the one source of randomness.
        counts: training counts of ids by table name.
        device: where the layers are made.

    Attributes:
        layers: a layer for each width, in order of their first tables.

    Raises:
        ConfigError: a table cannot be had, a width is not one of the method's, or TorchRec is
            missing.
        BudgetError: the method cannot get that small.
    """

    def __init__(
        self,
        tables: Sequence[Any],
        method: str | Spec = "full",
        *,
        ratio: float | None = None,
        budget: int | str | None = None,
        is_weighted: bool = False,
        seed: int = 0,
        counts: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        require_torchrec()
        super().__init__()
        self._configs, self._weighted = list(tables), is_weighted
        check_tables(self._configs, is_weighted)
        check_request(self._configs[0].embedding_dim, ratio, budget)
        for table in self._configs:
            table.feature_names = table.feature_names or [table.name]
        groups: dict[int, list[int]] = {}
        for number, table in enumerate(self._configs):
            groups.setdefault(table.embedding_dim, []).append(number)
        self._groups = list(groups.values())
        schemas = [schema_of([self._configs[i] for i in own], counts) for own in self._groups]
        layers = list(zip(schemas, groups, strict=True))
        shares = divide(None if budget is None else parse_bytes(budget), layers, method)
        self.layers = nn.ModuleList(
            embedding(
                schema,
                method,
                dim=dim,
                ratio=ratio,
                budget=shares[number],
                seed=seed + number,
                device=device or "cpu",
            )
            for number, (schema, dim) in enumerate(layers)
        )
        for layer in self.layers:
            check_widths(layer)

    @classmethod
    def of(
        cls, collection: Any, method: str | Spec = "full", **options: Any
    ) -> FeatureEmbeddingBagCollection:
        """Make the stand-in for an ``EmbeddingBagCollection``.

        Where every id has a private row of its own in the method ("full"), rows are the
        collection's; other methods start anew.

        Args:
            collection: not sharded yet.
            method: as for the constructor.
            options: its other arguments but ``is_weighted``.

        Raises:
            ConfigError: it is no ``EmbeddingBagCollection``.
        """
        require_torchrec()
        from torchrec.modules.embedding_modules import EmbeddingBagCollection

        if not isinstance(collection, EmbeddingBagCollection):
            raise ConfigError(
                f"an EmbeddingBagCollection is needed, got {type(collection).__name__}; "
                "a sharded one is replaced before it is sharded"
            )
        tables = [copy.copy(table) for table in collection.embedding_bag_configs()]
        made = cls(
            tables,
            method,
            is_weighted=collection.is_weighted(),
            **{"device": collection.device, **options},
        )
        bags = collection.embedding_bags
        made.take_rows({table.name: bags[table.name].weight for table in tables})
        return made.train(collection.training)

    @torch.no_grad()
    def take_rows(self, rows: Mapping[str, Tensor]) -> list[str]:
        """Take over the rows of plain tables where every id has a private row.

        Args:
            rows: table name -> ``[num_embeddings, D]``.

        Returns:
            Names of the tables that were taken.
        """
        taken: list[str] = []
        for layer, own in zip(self.layers, self._groups, strict=True):
            source = getattr(layer, "source", None)
            if not isinstance(source, Lookup) or not isinstance(source.rows, RowTable):
                continue
            if isinstance(source.address, OffsetAddress) and isinstance(source.combine, Concat):
                names = [self._configs[number].name for number in own]
                source.rows.weight.copy_(torch.cat([rows[name].float() for name in names]))
                taken += names
        return taken

    def forward(self, features: Any) -> Any:
        """Return the pooled bags.

        Args:
            features: a ``KeyedJaggedTensor`` with all features of the tables, in any order; other
                keys are left alone.

        Raises:
            SchemaError: a feature is missing, weights are, or batch sizes differ without inverse
                indices.
            IdError: an id is out of its table's range.
        """
        from torchrec.sparse.jagged_tensor import KeyedTensor

        bags = features.to_dict()
        found: dict[tuple[int, str], Tensor] = {}
        for layer, own in zip(self.layers, self._groups, strict=True):
            found |= self._pooled(layer, own, bags)
        order = [(number, name) for number, name, _ in self._features()]
        pooled = [found[place] for place in order]
        pooled = whole_batch(pooled, [name for _, name in order], features)
        return KeyedTensor(
            keys=self.embedding_names(),
            length_per_key=[dim for _, _, dim in self._features()],
            values=torch.cat(pooled, dim=1),
        )

    def _features(self) -> list[tuple[int, str, int]]:
        """Return table number, feature and width of every output, in order."""
        return [
            (number, name, table.embedding_dim)
            for number, table in enumerate(self._configs)
            for name in table.feature_names
        ]

    def _pooled(
        self, layer: nn.Module, own: Sequence[int], bags: Mapping[str, Any]
    ) -> dict[tuple[int, str], Tensor]:
        """Return ``[B_f, D]`` for the features of the tables of one layer."""
        places = [(number, name) for number in own for name in self._configs[number].feature_names]
        for _, name in places:
            if name not in bags:
                raise SchemaError(f"feature {name!r} is missing; {nearest(name, list(bags))}")
        chosen = [bags[name] for _, name in places]
        ids = torch.cat([bag.values() for bag in chosen]).long()
        lengths = [bag.lengths() for bag in chosen]
        local = {number: place for place, number in enumerate(own)}
        counts = torch.tensor([len(bag.values()) for bag in chosen], device=ids.device)
        tables = torch.tensor([local[number] for number, _ in places], device=ids.device)
        table = tables.repeat_interleave(counts)
        self._check(ids, counts, places)
        vectors = layer.lookup(ids, table)  # type: ignore[operator]  # a featemb layer
        if self._weighted:
            vectors = vectors * weights_of(chosen, places)[:, None]
        pooled = sum_bags(vectors, torch.cat(lengths))
        pieces = torch.split(pooled, [len(one) for one in lengths])
        return {
            place: piece / length.clamp(min=1)[:, None] if self._mean(place[0]) else piece
            for place, piece, length in zip(places, pieces, lengths, strict=True)
        }

    def _mean(self, number: int) -> bool:
        return bool(self._configs[number].pooling.name == "MEAN")

    def _check(self, ids: Tensor, counts: Tensor, places: Sequence[tuple[int, str]]) -> None:
        """Refuse an id that has no row in its table."""
        if torch.compiler.is_compiling():
            return
        sizes = torch.tensor([self._configs[i].num_embeddings for i, _ in places]).to(ids.device)
        wrong = (ids < 0) | (ids >= sizes.repeat_interleave(counts))
        if not bool(wrong.any()):
            return
        at = int(wrong.nonzero()[0])
        number, name = places[int((counts.cumsum(0) <= at).sum())]
        table = self._configs[number]
        raise IdError(
            f"feature {name!r}: id {int(ids[at])} is out of range of table {table.name!r} "
            f"(0 <= id < {table.num_embeddings})"
        )

    def embedding_bag_configs(self) -> list[Any]:
        """Return the ``EmbeddingBagConfig``s."""
        return self._configs

    def embedding_names(self) -> list[str]:
        """Return the keys of the answer."""
        from torchrec.modules.embedding_modules import get_embedding_names_by_table

        return [name for names in get_embedding_names_by_table(self._configs) for name in names]

    def is_weighted(self) -> bool:
        """Whether bags have a weight for each id."""
        return self._weighted

    @property
    def device(self) -> torch.device:
        """Where the layers are."""
        held = [*self.parameters(), *self.buffers()]
        return held[0].device if held else torch.device("cpu")

    def freeze(self, codec: str | None = None) -> FeatureEmbeddingBagCollection:
        """Return the deployable form: the same call, over frozen layers.

        Args:
            codec: row format, such as "int8"; None takes each layer's own.
        """
        served = copy.copy(self)
        served._modules = dict(self._modules)
        frozen = [layer.freeze(codec) for layer in self.layers]  # type: ignore[operator]  # layers
        served.layers = nn.ModuleList(frozen)
        return served.eval()
