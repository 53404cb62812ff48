"""Losses of a method's first steps, for tests that compare them."""

from __future__ import annotations

from torch.nn.functional import binary_cross_entropy_with_logits

import featemb as fe
from featemb.check.case import LinearReader, task


def loss_curve(spec: str, steps: int = 50, device: str = "cpu") -> list[float]:
    """Losses of so many steps in the first training stage, 64 samples each."""
    model = LinearReader(fe.check.Case(spec).layer(seed=3)).to(device)
    model.layer.begin_stage(model.layer.stages()[0])
    optimizers = fe.optim.build(model, lr=0.02)
    losses = []
    for step, batch in enumerate(task(steps, 64), start=1):
        logits = model(batch.ids.to(device))
        loss = binary_cross_entropy_with_logits(logits, batch.label.to(device))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss + model.layer.penalty()).backward()
        model.layer.after_backward()
        for optimizer in optimizers:
            optimizer.step()
        model.layer.after_step(step)
        losses.append(float(loss.detach()))
    return losses
