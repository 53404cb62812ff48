"""Equal widths for the models that multiply features with each other, and the FM term.

Shape letters: B samples, F features, M numeric columns, W sum of the widths, D the largest width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featemb.errors import ConfigError
from featemb.ids import tracing
from featemb.models.base import ModelContext
from featemb.models.mlp import linear

_SHOWN = 4


class EqualWidths(nn.Module):
    """Brings an embedded batch ``[B, W]`` to ``[B, F, D]``.

    Equal widths are a free view. Otherwise, where asked for, features of each width below D share
    one linear map to D without bias (mixed dimensions, Ginart et al., 2019). A served layer without
    the columns that are always zero is filled up with them first (`keep_inputs`).

    Args:
        context: the embedding layer and the source of initial weights.
        model: name for the error message.
        project: whether unequal widths are projected.

    Attributes:
        dim: D.
        columns: places of the given columns among W, if not all are given.

    Raises:
        ConfigError: the widths are unequal and project is False.
    """

    def __init__(self, context: ModelContext, model: str, project: bool) -> None:
        super().__init__()
        self.widths = context.embedding.widths
        self.dim = max(self.widths)
        self.columns: tuple[int, ...] | None = None
        narrow = sorted(set(self.widths) - {self.dim})
        if narrow and not project:
            names = context.embedding.schema.names
            raise ConfigError(
                f"{model} needs features of equal width, got {describe(names, self.widths)}; "
                f"build it with project=True to map narrower features to width {self.dim}"
            )
        self.maps = nn.ModuleDict(
            {str(w): linear(w, self.dim, context.generator, bias=False) for w in narrow}
        )

    def keep_inputs(self, columns: Sequence[int]) -> None:
        """Expect these of the W columns from now on; the others are zero."""
        self.columns = tuple(column for column in columns if column < sum(self.widths))

    def sums(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum over features ``[B, D]`` and the sum of all squares ``[B]``.

        Columns that are left out are zero: they are added up without being filled in.
        """
        if self.columns is None or self.maps:
            fields: Tensor = self(vectors)
            if tracing() or not (torch.is_grad_enabled() and fields.requires_grad):
                return fields.sum(1), fields.square().sum((1, 2))
            both: tuple[Tensor, Tensor] = _Sums.apply(fields)  # type: ignore[no-untyped-call]
            return both
        place = torch.tensor(self.columns, dtype=torch.int64, device=vectors.device) % self.dim
        where = torch.nn.functional.one_hot(place, self.dim).to(vectors.dtype)
        return vectors @ where, vectors.square().sum(1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[B, F, D]`` of ``[B, W]``."""
        if self.columns is not None:
            zeros = vectors.new_zeros(vectors.shape[0], sum(self.widths))
            places = torch.tensor(self.columns, dtype=torch.int64, device=vectors.device)
            vectors = zeros.index_copy(1, places, vectors)
        if not self.maps:
            return vectors.view(vectors.shape[0], len(self.widths), self.dim)
        columns: list[Tensor] = list(torch.split(vectors, list(self.widths), 1))
        for name, project in self.maps.items():
            features = [f for f, width in enumerate(self.widths) if width == int(name)]
            wide = project(torch.stack([columns[f] for f in features], 1))
            for f, column in zip(features, wide.unbind(1), strict=True):
                columns[f] = column
        return torch.stack(columns, 1)


class _Sums(torch.autograd.Function):
    """Sum over features and sum of all squares, whose gradient is written in two passes.

    ``dL/dz_f = dL/ds + 2 z_f dL/dq`` for the sum s and the squares' sum q; autograd's own takes six
    passes over ``[B, F, D]``, the largest tensor of a step.
    """

    generate_vmap_rule = True  # torch.func may go through it

    @staticmethod
    def forward(fields: Tensor) -> tuple[Tensor, Tensor]:
        return fields.sum(1), fields.square().sum((1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (fields,) = ctx.saved_tensors
        of_sum, of_squares = grads
        gradient: Tensor = fields * (2 * of_squares)[:, None, None]
        if torch.is_grad_enabled():  # a gradient of this gradient is asked for
            return gradient + of_sum[:, None]
        return gradient.add_(of_sum[:, None])


def describe(names: tuple[str, ...], widths: tuple[int, ...]) -> str:
    """Say which features have which width, a few names of each."""
    parts = []
    for width in sorted(set(widths), reverse=True):
        group = [repr(n) for n, w in zip(names, widths, strict=True) if w == width]
        more = f" and {len(group) - _SHOWN} more" if len(group) > _SHOWN else ""
        parts.append(f"{width} ({', '.join(group[:_SHOWN])}{more})")
    return ", ".join(parts)


class Pairwise(nn.Module):
    """The second-order term of a factorization machine (Rendle, ICDM 2010).

    ``sum_{i<j} <z_i, z_j> = 1/2 (|sum_i z_i|^2 - sum_i |z_i|^2)`` over the features' vectors
    ``z_f = e_f`` and the numeric columns' ``z_j = x_j v_j``: linear in the number of vectors.

    Attributes:
        weight: v, ``[M, D]``, starting from N(0, 0.01^2); None where M is 0.
    """

    def __init__(self, context: ModelContext, dim: int) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = None
        if context.numeric:
            start = torch.empty(context.numeric, dim)
            self.weight = nn.Parameter(start.normal_(0, 0.01, generator=context.generator))

    def forward(self, sums: tuple[Tensor, Tensor], numeric: Tensor | None) -> Tensor:
        """Return ``[B]`` of the features' sums (`EqualWidths.sums`) and numeric ``[B, M]``."""
        total, squares = sums
        if numeric is not None and self.weight is not None:
            # never materialises the [B, M, D] vectors x_j v_j
            total = total + numeric @ self.weight
            squares = squares + numeric.square() @ self.weight.square().sum(1)
        return 0.5 * (total.square().sum(1) - squares)
