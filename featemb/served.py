"""`Served`: a package in service, which takes deltas while it is called."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from featemb import package
from featemb.delta import updated
from featemb.errors import FormatError
from featemb.frozen import FrozenEmbedding
from featemb.package import Package

M = TypeVar("M", bound=nn.Module)


class Served(Generic[M]):
    """A frozen layer or model in service; called as itself, from any number of threads.

    A delta makes a second module, which shares every tensor that does not change, is checked, and
    then takes the first one's place at once: every call runs on one of the two from its beginning
    to its end, and never on a mixture. Until the calls under way are over, the tensors that changed
    are held twice.

    Args:
        path: the package.
        kind: what it must hold.
        rebuild: makes the module from the package's content and its name.
        device: where it computes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str,
        rebuild: Callable[[Package, str], M],
        device: torch.device | str = "cpu",
    ) -> None:
        content = package.read_any(path)
        if content.kind != kind:
            raise FormatError(f"{os.fspath(path)!r} holds a {content.kind!r}, not a {kind!r}")
        self._name = os.fspath(path)
        self._rebuild = rebuild
        self._device = torch.device(device)
        self._one_at_a_time = threading.Lock()
        self._current = self._made(content)

    @property
    def module(self) -> M:
        """The layer or model now in service; it is never changed, only followed by another.

        Several calls that must agree take it once and call it.
        """
        return self._current[0]

    @property
    def checksum(self) -> str:
        """Checksum of the package now in service."""
        return self._current[2]

    def __call__(self, *arguments: Any) -> torch.Tensor:
        """Return what the layer or model returns."""
        answer: torch.Tensor = self.module(*arguments)
        return answer

    def apply(self, delta: str | os.PathLike[str]) -> bool:
        """Go on with the package that a delta leads to (`featemb.delta`).

        Calls under way end on what they began with. On an error nothing has changed.

        Args:
            delta: from a package of this content.

        Returns:
            Whether anything was to be done: False where the delta was applied before.

        Raises:
            FormatError: the delta cannot be read, or starts from another package.
        """
        with self._one_at_a_time:
            module, text, checksum = self._current
            tensors = {name: one.cpu() for name, one in module.state_dict().items()}
            before = Package(text, package.header(text, self._name), tensors, checksum)
            after = updated(before, delta, self._name)
            if after is before:
                return False
            self._current = self._made(after)
            return True

    def _made(self, content: Package) -> tuple[M, str, str]:
        module = self._rebuild(content, self._name).to(self._device).eval()
        return module, content.text, content.checksum


def serve(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> Served[FrozenEmbedding]:
    """Read a layer that `FrozenEmbedding.save` wrote, to serve and to update.

    Raises:
        FormatError: as `featemb.load`.
    """
    return Served(path, "embedding", _layer, device)


def _layer(content: Package, _: str) -> FrozenEmbedding:
    return FrozenEmbedding.rebuild(content.header, content.tensors)
