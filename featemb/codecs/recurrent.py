"""The recurrence behind recurrent binary codes, and how its matrices are learned.

Shape letters: N rows, C numbers a row, M signs a row and stage, K stages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SAMPLE = 1 << 15
_STEPS = 400
_BATCH = 2048
_RATE = 0.01
_SEED = 0xB1


class _Sign(torch.autograd.Function):
    """Signs, +1 for zero, whose gradient passes where the input is within -1 ... 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        passed: Tensor = grads[0] * (x.abs() <= 1)
        return passed


class Recurrence(nn.Module):
    """``b_0 = sign(f E_0)``, ``b_{i+1} = b_i + 2^-(i+1) sign((f - b_i D_i) E_{i+1})``.

    Args:
        width: C.
        signs: M.
        stages: K.
        generator: of the initial values.
    """

    def __init__(self, width: int, signs: int, stages: int, generator: torch.Generator) -> None:
        super().__init__()
        scale = 2.0 * width**0.5 / width  # inputs of about 1 for directions of unit length

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * scale)

        self.encoders = nn.ParameterList([drawn(width, signs) for _ in range(stages)])
        self.decoders = nn.ParameterList(
            [nn.Parameter(encoder.detach().T.clone() / signs) for encoder in self.encoders]
        )

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return b ``[N, M]`` and the reconstruction ``[N, C]`` of directions ``[N, C]``."""
        left, levels = rows, torch.zeros((), device=rows.device)
        for stage, (encoder, decoder) in enumerate(zip(self.encoders, self.decoders, strict=True)):
            signs: Tensor = _Sign.apply(left @ encoder * 2.0**stage)  # type: ignore[no-untyped-call]
            levels = levels + 2.0**-stage * signs
            found = levels @ decoder
            left = rows - found
        return levels, found


def fit_recurrence(directions: Tensor, mass: Tensor, signs: int, stages: int) -> Recurrence:
    """Learn the matrices by a short run of Adam on a sample, the same for the same arguments.

    Args:
        directions: ``[N, C]``, unit length or zero.
        mass: weight of each row, ``[N]``.
        signs: M.
        stages: K.
    """
    generator = torch.Generator().manual_seed(_SEED)
    recurrence = Recurrence(directions.shape[1], signs, stages, generator).to(directions.device)
    if not bool((mass > 0).any()):
        return recurrence
    order = torch.randperm(len(directions), generator=generator)[:_SAMPLE].to(directions.device)
    rows = directions[order]
    weight = (mass[order] / mass[order].mean().clamp(min=1e-300)).float()
    optimizer = torch.optim.Adam(recurrence.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    best, least = _state(recurrence), _loss(recurrence, rows, weight)
    with torch.enable_grad():
        for step in range(1, _STEPS + 1):
            some = torch.randint(len(rows), (min(_BATCH, len(rows)),), generator=generator)
            some = some.to(rows.device)
            loss = _squares(recurrence(rows[some])[1] - rows[some], weight[some])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if step % 100 == 0 and (found := _loss(recurrence, rows, weight)) < least:
                best, least = _state(recurrence), found
    recurrence.load_state_dict(best)
    return recurrence


@torch.no_grad()
def encode_rows(recurrence: Recurrence, rows: Tensor) -> Tensor:
    """Return codes int64 ``[N, M]`` of K bits, of the levels ``(2 code + 1) 2^(1-K) - 2``."""
    stages = len(recurrence.encoders)
    levels, _ = recurrence(rows)
    codes: Tensor = (((levels + 2) * 2 ** (stages - 1) - 1) / 2).round().long()
    return codes


def _squares(error: Tensor, weight: Tensor) -> Tensor:
    mean: Tensor = (error.square().sum(1) * weight).mean()
    return mean


@torch.no_grad()
def _loss(recurrence: Recurrence, rows: Tensor, weight: Tensor) -> float:
    return float(_squares(recurrence(rows)[1] - rows, weight))


def _state(recurrence: Recurrence) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in recurrence.state_dict().items()}
