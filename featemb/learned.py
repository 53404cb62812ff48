"""Methods whose rows are codes that are learned in training: their settings, and their layer.

Shape letters: n ids of a feature, D width, M parts of a vector, K codewords a part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from featemb.codebooks import Codebooks, Coder
from featemb.config import tunable
from featemb.errors import BudgetError
from featemb.layer import Axis, BuildContext, MethodConfig, PartsEmbedding
from featemb.parts.hot import hot_part
from featemb.parts.learned_codes import LearnedCodes

_FEWEST = 2


@dataclass(frozen=True, kw_only=True)
class LearnedCodesConfig(MethodConfig):
    """Base of the methods with learned codes.

    Attributes:
        limit: serving bytes that may be used; None takes a tenth of the full table's, or the
            smallest size where that is larger. With ``parts`` and ``codewords`` set it is only
            checked.
        parts: M, or the largest divisor of D below it; None chooses it (see the method).
        codewords: K; None chooses it.
        commitment: weight of the loss that pulls queries to their codewords.
        task_gradient: whether codewords also get the gradient of the data loss, as looked-up rows.
        codebook_lr: learning rate of the codewords, as a multiple of that of the queries.
        init: queries and codewords start uniform in ``[-init, init]``.
    """

    axis: ClassVar[Axis] = "format"
    own_rows: ClassVar[str] = "has a row format of its own"
    knob: ClassVar[str] = "limit"
    knob_in_bytes: ClassVar[bool] = True

    limit: int | None = None
    parts: int | None = tunable(None, choices=(None, 2, 4, 8))
    codewords: int | None = None
    commitment: float = tunable(0.0, 0.0, 1.0)
    task_gradient: bool = tunable(False, choices=(False, True))
    codebook_lr: float = tunable(1.0, 0.1, 10.0, log=True)
    init: float = tunable(0.05, 1e-3, 0.5, log=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.require("parts", "at least 1", self.parts is None or self.parts >= 1)
        few = self.codewords is not None and self.codewords < _FEWEST
        self.require("codewords", "at least 2", not few)
        for name in ("commitment", "codebook_lr"):
            self.require(name, "at least 0 and finite", 0 <= getattr(self, name) < math.inf)

    def coder(self, context: BuildContext) -> Coder:
        """Return what counts bytes."""
        raise NotImplementedError

    def tail(self, codewords: int) -> int | None:
        """Return how many of the codewords ids that are not frequent may have; None for all."""
        return None

    def chosen(self, context: BuildContext) -> Codebooks:
        """Return the sizes as set, or as the limit allows.

        Raises:
            BudgetError: the smallest sizes are above the limit.
        """
        coder = self.coder(context)

        def made(parts: int, codewords: int) -> Codebooks:
            size = self.codewords or codewords
            return coder.of(self.parts or parts, size, self.tail(size))

        smallest = made(1, _FEWEST)
        floor = coder.bytes(smallest)
        if self.limit is not None and floor > self.limit:
            raise BudgetError(
                f"{self.name} at width {context.dim} needs at least {floor:,} bytes, "
                f"the limit is {self.limit:,}",
                floor,
            )
        if self.parts is not None and self.codewords is not None:
            return smallest
        full = context.schema.full_bytes(context.dim)
        limit = max(floor, full // 10) if self.limit is None else self.limit
        return coder.largest(limit, made)


class LearnedCodesEmbedding(PartsEmbedding):
    """Queries that are replaced by codewords (see `LearnedCodes`).

    The codewords need the calls of the loop: the loss that moves them is in ``penalty``.
    """

    smooth = False
    config: LearnedCodesConfig

    def __init__(
        self,
        context: BuildContext,
        config: LearnedCodesConfig,
        *,
        books: int = 1,
        temperature: float = 1.0,
    ) -> None:
        cardinalities, init = context.schema.cardinalities, config.init
        sizes, coder = config.chosen(context), config.coder(context)
        width = context.dim // sizes.parts
        table = context.table(sum(cardinalities), context.dim, init)
        made = [context.table(sizes.codewords, width, init) for _ in range(books)]
        hot = [hot_part(context.schema, sizes.hot, context.device)] if any(sizes.hot) else []
        source = LearnedCodes.of(
            sizes,
            cardinalities,
            table=table,
            books=made if sizes.codewords else [],
            hot=hot,
            shared=coder.shared,
            temperature=temperature,
            task_gradient=config.task_gradient,
        )
        super().__init__(context, config, source)

    @property
    def codes(self) -> LearnedCodes:
        """The part that does it all."""
        assert isinstance(self.source, LearnedCodes)
        return self.source

    @property
    def trained_by_penalty(self) -> tuple[str, ...]:
        """Names of the parameters that the penalty alone trains."""
        alone = len(self.codes.books) == 1 and not self.config.task_gradient
        return ("source.books.0.weight",) if alone else ()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The queries; then the codewords, which no weight decay reaches."""
        rate = lr * self.config.codebook_lr
        words = {"params": list(self.codes.books.parameters()), "lr": rate, "weight_decay": 0.0}
        return [{"params": [self.codes.table.get_parameter("weight")], "lr": lr}, words]

    def penalty(self) -> Tensor:
        """``mean((v - sg(q))^2)`` of the batch, and the commitment loss where it has a weight."""
        codes = self.codes
        if not self.training or len(codes.books) != 1:
            return super().penalty()
        total = codes.gap()
        if self.config.commitment:
            total = total + self.config.commitment * codes.gap(of_queries=True)
        return total
