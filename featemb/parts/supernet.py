"""`Supernet`: rows that are pruned by learned thresholds, and vectors cut to random widths.

Shape letters: B samples, F features, N ids of all features, D width, V variants.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from featemb.hashing import bucket, mix64
from featemb.parts.base import Source

_NEAR, _FAR = 0.4, 1.0


class BinaryStep(torch.autograd.Function):
    """``1 if z > 0 else 0`` with a long-tailed surrogate of its derivative.

    ``2 - 4|z|`` for ``|z| <= 0.4``, 0.4 up to ``|z| = 1``, and 0 beyond (Lyu et al., CIKM 2022).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """Return the step."""
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Multiply by the surrogate derivative."""
        (z,) = ctx.saved_tensors
        size = z.abs()
        slope = torch.where(size <= _NEAR, 2 - 4 * size, torch.full_like(z, _NEAR))
        return grads[0] * torch.where(size <= _FAR, slope, torch.zeros_like(z))


class Supernet(Source):
    """The trainable table with its masks.

    ``e(f, x) = m_e(x) m_d(f) E[i]``, ``i = offset_f + x``; m_e is 0 or 1, m_d is ``1^k 0^(D-k)``.

    Attributes:
        address: (ids, feature) -> rows ``[..., 1]``.
        rows: the table E ``[N, D]``.
        thresholds: table ``[F, 1]`` or ``[N, 1]``.
        keep: bool ``[N]``, rows kept by the architecture.
        widths: int64 ``[F]``, k_f of the architecture.
        seed: int64 scalar, seed of the drawn widths.
        draws: int64 scalar, how often widths were drawn.
        norm: 1 or 2, norm of a row that is held against its threshold.
        by_id: whether thresholds are of ids, not of features.
        masks: which masks exist: "both", "rows" (m_e) or "dims" (m_d).
        form: what is computed; set by the layer (see `Form`).
        variants: ranks ``[N]``, numbers of kept rows ``[V]`` and widths ``[V, F]`` in a search.
        largest: largest norm of each feature in the last batch, ``[F]``; 0 where none.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("keep", "widths"), "masks"),
        **dict.fromkeys(("seed", "draws"), "seeds"),
    }
    address: nn.Module
    rows: nn.Module
    thresholds: nn.Module
    keep: Tensor
    widths: Tensor
    seed: Tensor
    draws: Tensor
    norm: int
    by_id: bool
    masks: str
    form: ClassVar[Literal["supernet", "thresholds", "architecture"]] = "supernet"
    variants: ClassVar[tuple[Tensor, Tensor, Tensor] | None] = None
    largest: ClassVar[Tensor | None] = None

    @property
    def by_number(self) -> bool:  # type: ignore[override]  # the architecture is fixed, scores are not
        """Whether rows are read by number alone: once the architecture is found."""
        return self.form == "architecture"

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``: in training of the supernet, else as `form` says."""
        rows = self.address(ids, feature)[..., 0]
        vectors: Tensor = self.rows(rows)
        if self.form == "architecture":
            column = torch.arange(vectors.shape[-1], device=ids.device)
            mask = self.keep[rows][..., None] & (column < self.widths[feature][..., None])
            return torch.where(mask, vectors, torch.zeros_like(vectors))
        if self.masks != "dims":
            norms = self.norms(vectors)
            self._note(norms, feature)
            vectors = vectors * BinaryStep.apply(norms - self.threshold(rows, feature))  # type: ignore[no-untyped-call]
        if self.form == "supernet" and self.masks != "rows":
            vectors = torch.where(self._prefixes(vectors), vectors, torch.zeros_like(vectors))
        return vectors

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]``; with V variants, ids are V copies of a batch."""
        if self.variants is None:
            return super().dense(ids)
        rank, kept, widths = self.variants
        batch = ids.shape[0] // len(kept)
        rows, vectors = self.read(ids[:batch])
        column = torch.arange(vectors.shape[-1], device=ids.device)
        inside = (column < widths[..., None]).to(vectors.dtype)  # [V, F, D]
        chosen = (rank[rows] < kept[:, None, None]).to(vectors.dtype)  # [V, B, F]
        each = vectors * inside[:, None] * chosen[..., None]
        return each.flatten(0, 1)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows ``[B, F]`` and whole vectors ``[B, F, D]`` of ids ``[B, F]``."""
        feature = torch.arange(ids.shape[1], device=ids.device)
        rows: Tensor = self.address(ids, feature)[..., 0]
        return rows, self.rows(rows)

    def norms(self, vectors: Tensor) -> Tensor:
        """Return the norm of each row, ``[..., 1]``."""
        found: Tensor = torch.linalg.vector_norm(vectors, self.norm, -1, keepdim=True)
        return found

    def threshold(self, rows: Tensor, feature: Tensor) -> Tensor:
        """Return the threshold of each row, ``[..., 1]``."""
        found: Tensor = self.thresholds(rows if self.by_id else feature.expand_as(rows))
        return found

    @torch.no_grad()
    def scores(self, cardinalities: tuple[int, ...]) -> Tensor:
        """Return norm less threshold of all rows, ``[N]``: positive where the row is kept."""
        weight = self.rows.get_parameter("weight")
        norms = self.norms(weight)[:, 0]
        if self.masks == "dims":
            return norms
        threshold = self.thresholds.get_parameter("weight")[:, 0]
        if not self.by_id:
            counts = torch.tensor(cardinalities, device=weight.device)
            threshold = threshold.repeat_interleave(counts)
        return norms - threshold

    def _note(self, norms: Tensor, feature: Tensor) -> None:
        """Note the largest norms of a training batch: no threshold may pass them."""
        if not (self.training and torch.is_grad_enabled()):
            return
        features = self.widths.shape[0]
        flat = norms.detach()[..., 0]
        where = feature.expand_as(flat).reshape(-1)
        largest = flat.new_zeros(features).scatter_reduce(0, where, flat.reshape(-1), "amax")
        self.largest = largest  # type: ignore[misc]  # of this part, not of the class

    def _prefixes(self, vectors: Tensor) -> Tensor:
        """Draw a width of 1 to D for every vector; return the masks ``[..., D]``."""
        dim = vectors.shape[-1]
        number = torch.arange(vectors[..., 0].numel(), device=vectors.device)
        salt = mix64(self.seed + mix64(self.draws))
        width = bucket(number, salt, dim).view(vectors.shape[:-1]) + 1
        self.draws += 1
        return torch.arange(dim, device=vectors.device) < width[..., None]
