"""Deep hash embeddings: an id's hashes are the input of a network, there is no table.

Shape letters: G features, n ids of one feature, k hashes, w hidden width, D output width, H hidden
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featemb import once
from featemb.hashing import mix64, salts
from featemb.ids import tracing
from featemb.parts.base import Part, Source

if TYPE_CHECKING:
    from featemb.codecs.base import Codec

CODE_BITS = 20
_CHUNK_CPU = 2**15  # codes made at once: they stay in the cache
_CHUNK = 2**24
_WORTH = 256  # ids of a feature from which finding the distinct ones pays out of training
_MOMENTUM = 0.1
_EPSILON = 1e-5


class HashEncoder(Source):
    """Abstract: k hash codes of an id and a network for each feature.

    ``y = mix(x + s_f)``, ``h_j`` = the top 20 bits of ``a_j y + b_j mod 2^64`` (a_j odd), and
    ``u_j = 2 h_j / (2^20 - 1) - 1``; with ``normal``, pairs of hashes become two normal numbers
    by Box and Muller's formula. s_f, a_j and b_j are hashes of the seed.

    Attributes:
        seed: int64 scalar, the seed of all hashes.
        hashes: k.
        normal: whether codes are normal rather than uniform in ``[-1, 1]``.
        first: weights ``[G, k, w]`` of the first hidden layer.
        hidden: weights ``[G, H - 1, w, w]`` of the others.
        last: weights ``[G, w, D]``.
        last_bias: ``[G, D]``.
    """

    computes: ClassVar[bool] = True
    finds_distinct: ClassVar[bool] = True
    memory_parts: ClassVar[dict[str, str]] = {
        "seed": "seeds",
        **dict.fromkeys(("first", "hidden", "last", "last_bias"), "decoder"),
    }
    seed: Tensor
    hashes: int
    normal: bool
    first: Tensor
    hidden: Tensor
    last: Tensor
    last_bias: Tensor

    def encode(
        self, codes: Tensor, network: Sequence[Tensor], where: slice, place: Tensor | None
    ) -> Tensor:
        """Return vectors ``[G', n, D]`` of the features ``where``.

        Args:
            codes: ``[G', u, k]``.
            network: their part of the tensors of `tensors`.
            where: the features, for tensors that are no arguments.
            place: which of the u codes is that of each value, int64 ``[G', n]``; None where they
                are in order.
        """
        raise NotImplementedError

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that an answer depends on; the first axis is the feature."""
        raise NotImplementedError

    def dense(self, ids: Tensor) -> Tensor:
        """Return ``[B, G, D]`` for ids ``[B, G]``: all networks at once."""
        return self._vectors(ids.t(), self.tensors(), slice(None)).transpose(0, 1)

    def forward(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return vectors ``[..., D]``: each feature's ids go through its network.

        A trace cannot sort ids by feature: there every network computes all ids.
        """
        feature = feature + torch.zeros_like(ids)  # the shape of both
        ids = ids.expand_as(feature)
        flat, of = ids.reshape(-1), feature.reshape(-1)
        split = (tensor.chunk(tensor.shape[0]) for tensor in self.tensors())
        networks = list(zip(*split, strict=True))
        width = self.last.shape[2]
        if tracing() and not self.training:
            vectors = self.last.new_zeros(flat.shape[0], width)
            for f, network in enumerate(networks):
                own = self._vectors(flat[None], network, slice(f, f + 1))[0]
                vectors = torch.where((of == f)[:, None], own, vectors)
            return vectors.view(*ids.shape, width)
        found, places = [], []
        for f, network in enumerate(networks):
            places.append((of == f).nonzero()[:, 0])
            found.append(self._vectors(flat[places[f]][None], network, slice(f, f + 1))[0])
        together = torch.cat(found)
        vectors = together.new_empty(together.shape).index_copy(0, torch.cat(places), together)
        return vectors.view(*ids.shape, width)

    def _vectors(self, ids: Tensor, network: Sequence[Tensor], where: slice) -> Tensor:
        """Return ``[G', n, D]`` of ids ``[G', n]`` of the features ``where``.

        The codes of each distinct id are made once, and go through the network once; in training
        through its first layer, behind which each value counts in the statistics. Products of
        matrices round by their number of rows, so answers differ from those of a trace, which
        computes every id, in the last bits; few ids are computed as they stand, and do not.
        """
        place = None
        least = 1 if self.training else _WORTH
        if once.applies() and ids.shape[1] >= least and ids.numel():
            pairs = [torch.unique(column, return_inverse=True) for column in ids]
            place = torch.stack([inverse for _, inverse in pairs])
            ids = nn.utils.rnn.pad_sequence([distinct for distinct, _ in pairs], batch_first=True)
        return self.encode(self.codes(ids, where), network, where, place)

    def codes(self, ids: Tensor, where: slice) -> Tensor:
        """Return codes ``[G', n, k]`` of ids ``[G', n]`` in the weights' format."""
        features, hashes = self.first.shape[0], self.hashes
        numbers = salts(self.seed, features + 2 * hashes)
        salt = numbers[:features][where]
        odd, shift = numbers[features : features + hashes] | 1, numbers[features + hashes :]
        keys = mix64(ids + salt[:, None]).reshape(-1)
        if tracing():
            return self._codes(keys, odd, shift).view(*ids.shape, hashes)
        codes = self.first.new_empty(keys.shape[0], hashes)
        most = max(1, (_CHUNK_CPU if keys.device.type == "cpu" else _CHUNK) // hashes)
        for begin in range(0, keys.shape[0], most):
            codes[begin : begin + most] = self._codes(keys[begin : begin + most], odd, shift)
        return codes.view(*ids.shape, hashes)

    def _codes(self, keys: Tensor, odd: Tensor, shift: Tensor) -> Tensor:
        """Return ``[n, k]`` for mixed keys ``[n]``."""
        largest = (1 << CODE_BITS) - 1
        hashes = (keys[:, None] * odd).add_(shift)  # mod 2^64, as int64 wraps around
        hashes = hashes.bitwise_right_shift_(64 - CODE_BITS).bitwise_and_(largest)
        numbers = hashes.to(self.first.dtype)
        if not self.normal:
            return numbers.mul_(2 / largest).sub_(1)
        one, other = numbers.chunk(2, -1)
        radius = torch.sqrt(-2 * torch.log((one + 0.5) / (largest + 1)))
        angle = other * (2 * pi / (largest + 1))
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], -1)


class DeepHash(HashEncoder):
    """Hash codes and networks as served: linear layers with a bias, Mish between them.

    Attributes:
        bias: ``[G, H, w]`` of the hidden layers.
    """

    memory_parts: ClassVar[dict[str, str]] = {**HashEncoder.memory_parts, "bias": "decoder"}
    bias: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all of them."""
        return self.first, self.hidden, self.bias, self.last, self.last_bias

    def encode(
        self, codes: Tensor, network: Sequence[Tensor], where: slice, place: Tensor | None
    ) -> Tensor:
        """Return vectors ``[G', n, D]``."""
        return spread(linear_chain(codes, network), place)


def spread(vectors: Tensor, place: Tensor | None) -> Tensor:
    """Return vectors ``[G, n, C]``: of each value that of its code, ``[G, u, C]``.

    Args:
        vectors: of the codes.
        place: number of each value's code, int64 ``[G, n]``; None where they are in order.
    """
    if place is None:
        return vectors
    first = torch.arange(vectors.shape[0], device=vectors.device)[:, None] * vectors.shape[1]
    return F.embedding(first + place, vectors.flatten(0, 1))


def linear_chain(codes: Tensor, network: Sequence[Tensor]) -> Tensor:
    """Return ``[G, n, D]`` of codes ``[G, n, k]``: the networks of `DeepHash`'s tensors."""
    first, hidden, bias, last, last_bias = network
    x = codes
    for weight, add in zip((first, *hidden.unbind(1)), bias.unbind(1), strict=True):
        x = F.mish(torch.baddbmm(add[:, None], x, weight))
    return torch.baddbmm(last_bias[:, None], x, last)


class NormedDeepHash(HashEncoder):
    """Hash codes and networks in training: batch normalisation and Mish after every hidden layer.

    A feature's values in a batch are normalised by their own mean and variance, and their running
    ones follow; a single value takes the running ones. In eval mode the running ones are folded
    into the weights: the answers are those of the served `DeepHash`, bit for bit.

    Attributes:
        scale: factor ``[G, H, w]`` after normalisation.
        shift: summand ``[G, H, w]``; hidden layers have no other bias.
        running_mean: ``[G, H, w]``.
        running_var: ``[G, H, w]``.
    """

    memory_parts: ClassVar[dict[str, str]] = {
        **HashEncoder.memory_parts,
        **dict.fromkeys(("scale", "shift", "running_mean", "running_var"), "decoder"),
    }
    scale: Tensor
    shift: Tensor
    running_mean: Tensor
    running_var: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return those of training, or in eval mode those of the served part."""
        if self.training:
            return self.first, self.hidden, self.scale, self.shift, self.last, self.last_bias
        return self._folded()

    def encode(
        self, codes: Tensor, network: Sequence[Tensor], where: slice, place: Tensor | None
    ) -> Tensor:
        """Return vectors ``[G', n, D]``."""
        if not self.training:
            return spread(linear_chain(codes, network), place)
        first, hidden, scale, shift, last, last_bias = network
        x = codes
        for number, weight in enumerate((first, *hidden.unbind(1))):
            x = torch.bmm(x, weight)
            if number == 0:
                x = spread(x, place)
            mean, variance = self._statistics(x, number, where)
            gain = scale[:, number] * torch.rsqrt(variance + _EPSILON)
            offset = shift[:, number] - mean * gain
            x = F.mish(x * gain[:, None] + offset[:, None])
        return torch.baddbmm(last_bias[:, None], x, last)

    def _statistics(self, x: Tensor, number: int, where: slice) -> tuple[Tensor, Tensor]:
        """Return mean and variance ``[G', w]`` of ``[G', n, w]``; the running ones follow."""
        running = self.running_mean[where, number], self.running_var[where, number]
        count = x.shape[1]
        if count < 2:  # a copy: other features may still change the buffers before the gradients
            return running[0].clone(), running[1].clone()
        variance, mean = torch.var_mean(x, 1, correction=0)
        with torch.no_grad():
            running[0].lerp_(mean.to(running[0].dtype), _MOMENTUM)
            unbiased = variance * (count / (count - 1))
            running[1].lerp_(unbiased.to(running[1].dtype), _MOMENTUM)
        return mean, variance

    def _folded(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        gain = self.scale * torch.rsqrt(self.running_var + _EPSILON)
        first = self.first * gain[:, :1]
        hidden = self.hidden * gain[:, 1:, None]
        bias = self.shift - self.running_mean.clone() * gain
        return first, hidden, bias, self.last, self.last_bias

    def frozen(self, codec: Codec) -> Part:
        """Return the served part; a codec stores rows of tables, networks stay as they are."""
        names = ("first", "hidden", "bias", "last", "last_bias")
        tensors = [tensor.detach().clone() for tensor in self._folded()]
        return DeepHash(
            seed=self.seed.clone(),
            hashes=self.hashes,
            normal=self.normal,
            **dict(zip(names, tensors, strict=True)),
        )
