"""Optimiser and learning rate of docs/method.md §3."""

from __future__ import annotations

import torch

from icre import config
from icre.model.network import ICRENetwork


def build_optimizer(network: ICRENetwork, settings: config.Optimizer) -> torch.optim.Optimizer:
    """Build the optimiser with two groups, backbone and new layers, each with its peak learning rate in ``peak_lr``."""
    backbone = {name for name, is_backbone in network.parameter_groups() if is_backbone}
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for name, p in named.items() if (name in backbone) == own], "lr": lr, "peak_lr": lr}
        for own, lr in ((True, settings.backbone_lr), (False, settings.lr))
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay, fused=True)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(groups, weight_decay=settings.weight_decay, fused=True)


def learning_rate_factor(epoch: float, schedule: config.Schedule) -> float:
    """Factor on every peak learning rate at ``epoch`` (a fraction counts steps): warm-up from 0.1, then steps.

    A pure function of progress, so the schedule has no state to save.
    """
    warm = 1.0
    if epoch < schedule.warmup_epochs:
        warm = 0.1 + 0.9 * epoch / schedule.warmup_epochs
    return warm * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to ``factor`` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
