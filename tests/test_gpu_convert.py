"""Converted models on a CUDA device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import featemb as fe

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(2000, 16, padding_idx=0)
        self.bag = nn.EmbeddingBag(1000, 8, mode="mean", padding_idx=3)
        self.out = nn.Linear(24, 1)

    def forward(self, users: Tensor, bags: Tensor) -> Tensor:
        return self.out(torch.cat((self.user(users), self.bag(bags)), 1))[:, 0]


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "pq(parts=2)", "svd", "binary"])
def test_a_model_is_converted_where_it_is_and_moves(codec: str) -> None:
    torch.manual_seed(0)
    model = Net().cuda()
    users, bags = torch.arange(0, 2000, 20), torch.arange(400).view(100, 4)
    small = fe.convert(model, codec)
    assert all(one.is_cuda for one in (*small.parameters(), *small.buffers()))
    found = small(users.cuda(), bags.cuda()).cpu()
    on_cpu = copy.deepcopy(small).cpu()
    assert torch.allclose(on_cpu(users, bags), found, atol=1e-4)
    assert torch.allclose(on_cpu.cuda()(users.cuda(), bags.cuda()).cpu(), found, atol=1e-6)
    with pytest.raises(fe.IdError, match="'user'"):
        small(users.cuda() + 2000, bags.cuda())


def test_a_limit_is_solved_there_too() -> None:
    report = fe.conversion(fe.convert(Net().cuda(), ["int8", "int4"], ratio=4))
    assert report.ratio >= 4
