"""PyTorch's DistributedDataParallel on gloo, as a gang: the ranks find each other by what torchrun would have set."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import kos_cluster as kos

pytestmark = [
    pytest.mark.whole,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"),
]

ROWS, STEPS = 64, 20
WAIT_S = 120.0


def data() -> tuple[Any, Any]:
    import torch

    rows = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(3))
    return rows, rows.sum(dim=1, keepdim=True)


def trained(model: Any, rows: Any, wanted: Any) -> list[Any]:
    """The model's parameters after some steps."""
    import torch

    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(model(rows), wanted).backward()
        optimiser.step()
    return [parameter.detach().numpy() for parameter in model.parameters()]


def fresh() -> Any:
    import torch

    torch.manual_seed(1)
    return torch.nn.Linear(4, 1)


def rank() -> list[Any]:
    """Train on this rank's share of the rows."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("gloo")
    try:
        rows, wanted = data()
        share = slice(torch.distributed.get_rank(), None, torch.distributed.get_world_size())
        return trained(DistributedDataParallel(fresh()), rows[share], wanted[share])
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_train_together_what_one_process_trains_alone() -> None:
    alone = trained(fresh(), *data())
    for parameters in kos.connect().gang(rank, 2, spread=True).result(WAIT_S):
        for together, wanted in zip(parameters, alone, strict=True):
            np.testing.assert_allclose(together, wanted, atol=1e-5)
