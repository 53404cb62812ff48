"""`Candidates`: tables of several widths, mixed by learned weights of each feature.

Shape letters: B samples, F features, N ids of all features, K candidate widths k, C their sum, D
width of the vectors.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from featemb.hashing import mix64
from featemb.parts.base import Source

_EPS, _MOMENTUM = 1e-5, 0.1


class Candidates(Source):
    """``e(f, x) = sum_k p_k norm_k(T_k[i] W_fk + b_fk)``, ``i = offset_f + x``.

    norm_k is batch normalisation without a scale and shift, over the vectors of all features. In
    training ``p = softmax((log softmax(alpha_f) + g) / tau)``, g Gumbel noise drawn for every
    batch; in eval mode ``p = softmax(alpha_f)`` with the running statistics.

    Attributes:
        address: (ids, feature) -> rows ``[..., 1]``.
        tables: T_k, rows -> ``[..., k]``.
        maps: W, the candidates' rows side by side, ``[F, C, D]``.
        biases: b, ``[F, K, D]``.
        alpha: ``[F, K]``.
        mean: running means of norm_k, ``[K, D]``.
        variance: running variances, ``[K, D]``.
        seed: int64 scalar, seed of the noise.
        draws: int64 scalar, how often noise was drawn.
        tau: temperature, a scalar.
        candidates: the widths k.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("maps", "biases", "mean", "variance"), "decoder"),
        **dict.fromkeys(("seed", "draws"), "seeds"),
        **dict.fromkeys(("alpha", "tau"), "architecture"),
    }
    address: nn.Module
    tables: nn.ModuleList
    maps: Tensor
    biases: Tensor
    alpha: Tensor
    mean: Tensor
    variance: Tensor
    seed: Tensor
    draws: Tensor
    tau: Tensor
    candidates: tuple[int, ...]

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``."""
        rows = self.address(ids, feature)[..., 0]
        weights = self.weights()
        total: Tensor | None = None
        for number, (maps, table) in enumerate(zip(self._maps(), self.tables, strict=True)):
            vectors = (table(rows)[..., None, :] @ maps[feature])[..., 0, :]
            normed = self._normed(vectors + self.biases[feature, number], number)
            mixed = weights[feature, number, None] * normed
            total = mixed if total is None else total + mixed
        assert total is not None
        return total

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, F, D]``, by one product a feature and candidate."""
        rows = self.address(ids, torch.arange(ids.shape[1], device=ids.device))[..., 0]
        weights = self.weights()
        total: Tensor | None = None
        for number, (maps, table) in enumerate(zip(self._maps(), self.tables, strict=True)):
            vectors = (table(rows).transpose(0, 1) @ maps).transpose(0, 1)
            normed = self._normed(vectors + self.biases[:, number], number)
            mixed = weights[:, number, None] * normed
            total = mixed if total is None else total + mixed
        assert total is not None
        return total

    def weights(self) -> Tensor:
        """Return p, ``[F, K]``; in training with fresh noise."""
        chances = self.alpha.log_softmax(1)
        if not self.training:
            return chances.exp()
        weights = ((chances + self._noise()) / self.tau).softmax(1)
        self.draws += 1
        return weights

    def _noise(self) -> Tensor:
        """Return Gumbel noise ``[F, K]``: ``-log(-log u)``, u hashed from the seed and draw."""
        number = torch.arange(self.alpha.numel(), device=self.alpha.device)
        bits = mix64(mix64(self.seed + mix64(self.draws)) + number) & ((1 << 52) - 1)
        uniform = (bits.double() + 0.5) / (1 << 52)
        return (-(-uniform.log()).log()).view_as(self.alpha).to(self.alpha.dtype)

    def _maps(self) -> tuple[Tensor, ...]:
        """Return W_k of all features, ``[F, k, D]`` each."""
        return torch.split(self.maps, list(self.candidates), dim=1)

    def _normed(self, vectors: Tensor, number: int) -> Tensor:
        """Normalise ``[..., D]``; in training by the batch, and follow its statistics."""
        mean, variance = self.mean[number], self.variance[number]
        count = vectors.numel() // vectors.shape[-1]
        if self.training and count:
            flat = vectors.reshape(count, -1)
            variance, mean = torch.var_mean(flat, 0, correction=0)
            with torch.no_grad():
                unbiased = variance * (count / max(1, count - 1))
                self.mean[number].lerp_(mean, _MOMENTUM)
                self.variance[number].lerp_(unbiased, _MOMENTUM)
        return (vectors - mean) * torch.rsqrt(variance + _EPS)

    def folded(self, feature: int, number: int) -> tuple[Tensor, Tensor]:
        """Return a candidate's map ``[k, D]`` and bias ``[D]`` with the running norm in them."""
        scale = torch.rsqrt(self.variance[number] + _EPS)
        maps = self._maps()[number][feature].detach()
        bias = self.biases[feature, number].detach() - self.mean[number]
        return maps * scale, bias * scale
