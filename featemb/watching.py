"""`Watching`: lookups that a layer hears of again once their gradient has come back."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featemb.layer import PartsEmbedding

_BACKWARDS = 64  # most backward passes that one step is made of


class Watching(PartsEmbedding):
    """A layer that counts its lookups in training, but only those with a gradient.

    Eval mode, frozen layers and ``torch.no_grad`` are not watched.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._seen: deque[tuple[Tensor, ...]] = deque(maxlen=_BACKWARDS)

    def lookup(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Return the vectors ``[..., D]`` of ids ``[...]`` of broadcastable features."""
        vectors = super().lookup(ids, feature)
        self._watch(vectors, ids, feature)
        return vectors

    def forward_single(self, ids: Tensor) -> Tensor:
        """Look up ``[B, F]`` at once, each feature in its column."""
        vectors = super().forward_single(ids)
        self._watch(vectors, ids, None)
        return vectors

    @property
    def _watches(self) -> bool:
        """Whether there is a feature to count lookups of."""
        return True

    @abstractmethod
    def _noted(self, ids: Tensor, feature: Tensor | None, grad: Tensor) -> tuple[Tensor, ...]:
        """Return what to remember of a lookup; feature None: ids are ``[B, F]``."""

    def _recall(self) -> tuple[Tensor, ...]:
        """Return what was noted since the last call, joined, and forget it; () for nothing."""
        joined = tuple(torch.cat(part) for part in zip(*self._seen, strict=True))
        self._seen.clear()
        return joined

    @torch._disable_dynamo  # type: ignore[attr-defined]  # hooks of a compiled graph do not run
    def _watch(self, vectors: Tensor, ids: Tensor, feature: Tensor | None) -> None:
        if self.training and vectors.requires_grad and self._watches:
            hook = partial(self._hear, ids, feature)
            vectors.register_hook(hook)  # type: ignore[no-untyped-call]

    def _hear(self, ids: Tensor, feature: Tensor | None, grad: Tensor | None) -> None:
        if grad is not None:  # else autograd knows that it is zero
            self._seen.append(self._noted(ids, feature, grad))
