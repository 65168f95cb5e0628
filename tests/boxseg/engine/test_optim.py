"""Learning rate and parameter groups."""

import pytest
import torch
from torch import nn

from boxseg.config.method import SolverConfig
from boxseg.engine.optim import build_optimizer, lr_factor, set_lr

STEPS = 90_000


def test_warm_up_matches_the_worked_number():
    assert 0.01 * lr_factor(19, STEPS, SolverConfig(warmup=100)) == pytest.approx(
        0.0019081, abs=1e-9
    )


def test_multistep_falls_by_ten_at_each_milestone():
    solver = SolverConfig(warmup=1000)
    rates = [lr_factor(step, STEPS, solver) for step in (59_999, 60_000, 79_999, 80_000)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_ends_near_zero():
    solver = SolverConfig(schedule="cosine", warmup=0)
    assert lr_factor(0, 100, solver) == 1
    assert lr_factor(50, 100, solver) == pytest.approx(0.5)
    assert 0 < lr_factor(99, 100, solver) < 0.001


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        self.backbone.bias.requires_grad_(False)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_backbone_gets_its_own_rate_and_frozen_parameters_are_left_out(kind):
    settings = SolverConfig(optimizer=kind, lr=0.1, backbone_lr_scale=0.1)
    optimizer = build_optimizer(Network(), settings)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)
    assert torch.is_tensor(optimizer.param_groups[0]["params"][0])


@pytest.mark.parametrize(("beta2", "pace"), [(0.999, 0.10), (0.95, 0.50)])
def test_a_large_first_gradient_slows_adamw_for_as_long_as_beta2_remembers_it(beta2, pace):
    network = nn.Linear(1, 1, bias=False)
    settings = SolverConfig(optimizer="adamw", lr=0.01, beta2=beta2, weight_decay=0.0)
    optimizer = build_optimizer(network, settings)
    weights = []
    for update in range(101):
        network.weight.grad = torch.full((1, 1), 100.0 if update == 0 else 1.0)
        optimizer.step()
        weights.append(network.weight.item())
    # in learning rates, after 100 gradients that are all alike
    assert (weights[-2] - weights[-1]) / 0.01 == pytest.approx(pace, abs=0.02)
