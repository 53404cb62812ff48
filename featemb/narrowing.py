"""`NarrowedEmbedding`: a wide form is trained, and narrow tables of the widths found from it.

Shape letters: F features, n_f ids of feature f, D width of the vectors.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from featemb.codecs.base import Codec
from featemb.frozen import FrozenEmbedding
from featemb.layer import BuildContext, MethodConfig
from featemb.parts import Source
from featemb.projecting import projected_source
from featemb.stage import Stage
from featemb.staging import StagedEmbedding
from featemb.widths import Widths


class NarrowedEmbedding(StagedEmbedding):
    """A wide source until the last stage; narrow tables with projections in it.

    Widths are found by a search stage and held in ``found`` from then on. The last stage begins by
    making the narrow tables, of new initial values or of the wide form's. `freeze` before that
    makes them from a copy; before the search, with the widths of `planned`.

    Args:
        context: schema, width, seed, device.
        config: the method's configuration.
        wide: the source that is trained first.
        init: narrow tables start uniform in ``[-init, init]``.
        bias: whether projections have one.
        inherits: whether the last stage starts from the wide form's values.

    Attributes:
        found: int64 ``[F + 4]``: the widths, and the feature, number and kind of the ids that have
            more columns (see `Widths`); zeros before the search.
        start: int64 scalar, seed of the narrow tables' initial values.
    """

    memory_parts: ClassVar[dict[str, str]] = {"found": "widths", "start": "seeds"}
    architecture: ClassVar[tuple[str, ...]] = ("found",)
    found: Tensor
    start: Tensor

    def __init__(
        self,
        context: BuildContext,
        config: MethodConfig,
        wide: Source,
        *,
        init: float,
        bias: bool,
        inherits: bool,
    ) -> None:
        super().__init__(context, config, wide)
        self.init, self.bias, self.inherits = init, bias, inherits
        features = context.schema.num_features
        self.register_buffer(
            "found", torch.zeros(features + 4, dtype=torch.int64, device=context.device)
        )
        self.register_buffer("start", context.seed_tensor())
        self.chosen: Widths | None = None

    def wide(self, context: BuildContext) -> Source:
        """Make the source that is trained first."""
        raise NotImplementedError

    def choose(self) -> Widths:
        """Return the widths that follow from the wide form as it is."""
        raise NotImplementedError

    def planned(self) -> Widths:
        """Return the widths that `freeze` uses before the search."""
        return self.choose()

    def inherit(self, narrow: Source, widths: Widths) -> None:
        """Write the wide form's values into narrow tables."""
        raise NotImplementedError

    @property
    def narrow(self) -> bool:
        """Whether the layer has its narrow tables."""
        return self.stage == self.stages()[-1].name

    def choose_widths(self) -> Widths:
        """Choose the widths and hold them: what the search stage does."""
        chosen = self.choose()
        more = (chosen.feature, chosen.hot, chosen.columns, int(chosen.frequent))
        self.found.copy_(torch.tensor([*chosen.sizes, *more]))
        self.chosen = chosen
        return chosen

    def begin_stage(self, stage: Stage) -> None:
        """Make the narrow tables before the last stage."""
        if stage.name == self.stages()[-1].name and not self.narrow:
            # a rewind has loaded another state since the search
            with torch.no_grad():
                self.source = self._made(self.inherits)
        super().begin_stage(stage)

    def _made(self, inherits: bool) -> Source:
        """Return narrow tables, of new initial values or of the wide form's."""
        widths = self.chosen or self.planned()
        device = self.found.device
        seed = 0 if device.type == "meta" else int(self.start)
        context = BuildContext(self.schema, self.dim, seed, device, self.codec)
        narrow = projected_source(context, widths, self.init, self.bias)
        if inherits and device.type != "meta":
            self.inherit(narrow, widths)
        return narrow.train(self.training)

    def _freeze(self, codec: Codec) -> FrozenEmbedding:
        source = (self.source if self.narrow else self._made(inherits=True)).frozen(codec)
        assert isinstance(source, Source)
        return FrozenEmbedding(self.schema, self.dim, self.widths, source)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the form, wide or narrow, that a state dict has."""
        number = state_dict.get(f"{prefix}_extra_state")
        found = state_dict.get(f"{prefix}found")
        if number is not None and found is not None:
            self._reshape(int(number) == len(self.stages()), found.tolist())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _reshape(self, narrow: bool, found: list[int]) -> None:
        """Make the source of the wanted form, its values unset; take the widths."""
        before, self.chosen = self.chosen, _widths(found)
        if narrow == self.narrow and (not narrow or before == self.chosen):
            return
        device = self.found.device
        plan = BuildContext(self.schema, self.dim, 0, torch.device("meta"), self.codec)
        if narrow:
            assert self.chosen is not None
            source = projected_source(plan, self.chosen, self.init, self.bias)
        else:
            source = self.wide(plan)
        self.source = source.to_empty(device=device).train(self.training)


def _widths(found: list[int]) -> Widths | None:
    *sizes, feature, hot, columns, frequent = found
    return Widths(tuple(sizes), feature, hot, columns, bool(frequent)) if sizes[0] else None
