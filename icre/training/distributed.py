"""Make N workers with a batch of B / N each equivalent to one worker with a batch of B.

Three parts: a plan that is cut, not redrawn (``icre.data.plan``); features gathered with their gradient for a metric
loss over the global batch; and batch statistics over the global batch. Without an initialised process group, or with
one process, each function is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def world_size() -> int:
    """Number of training processes, 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_with_gradient(x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Gather (b, ...) of each of W workers into (B, ...), ordered by rank, on all of them.

    counts: rows b of each worker, if they differ. Every worker must compute the same loss from the result. The
    backward pass sums the gradients of the W copies and DistributedDataParallel's mean over workers divides by W
    again, so parameters receive the gradient of that one loss.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x, counts)  # type: ignore[no-untyped-call]
    return gathered


def gather(x: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Like :func:`gather_with_gradient`, but without gradient, for labels."""
    if world_size() == 1:
        return x
    counts = counts or [len(x)] * world_size()
    # Collectives require equal shapes: shorter parts are padded with zeros.
    rows = F.pad(x, [0, 0] * (x.dim() - 1) + [0, max(counts) - len(x)]).contiguous()
    parts = [torch.empty_like(rows) for _ in counts]
    dist.all_gather(parts, rows)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def any_worker(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which ``flags`` hold on at least one worker. All workers must call it. device: used by the collective."""
    if world_size() == 1:
        return list(flags)
    answer = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(answer, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in answer.tolist()]


def broadcast_buffers(network: nn.Module) -> None:
    """Overwrite each worker's buffers (running statistics of batch norm) with those of worker 0."""
    if world_size() == 1:
        return
    for buffer in network.buffers():
        dist.broadcast(buffer, src=0)


def synchronise_batch_norm(network: nn.Module) -> nn.Module:
    """Make every BatchNorm of ``network`` use training statistics of all workers; parameter names are kept."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            synced = GlobalBatchNorm(child.num_features, eps=child.eps, momentum=child.momentum or 0.1)
            # The same tensors: an optimiser and a frozen bias stay valid.
            synced.weight, synced.bias = child.weight, child.bias
            synced.load_state_dict(child.state_dict())
            setattr(network, name, synced)
        else:
            synchronise_batch_norm(child)
    return network


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics cover the batches of all workers.

    torch's SyncBatchNorm does the same but rejects CPU tensors. A worker may hold no row of a modality, so local counts
    may differ and may be 0. x: (n, C) or (n, C, h, w).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (n, C) or (n, C, h, w), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training also update the running statistics, equally on every worker."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        y: Tensor
        y, mean, var, count = _NormaliseGlobally.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps
        )
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            momentum = self.momentum or 0.0
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
            self.num_batches_tracked.add_(1)
        return y


class _Gather(torch.autograd.Function):
    """Rows of all workers; in the backward pass, the gradients of all copies of a row are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int] | None) -> Tensor:
        ctx.counts = counts or [len(x)] * dist.get_world_size()
        return gather(x, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return torch.split(total, list(ctx.counts))[dist.get_rank()], None


class _NormaliseGlobally(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) · w + b with mean and var over every worker's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, var, count = _global_moments(x)
        y = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        # With fixed statistics torch's own kernel gives dy · w / std and the local sums of dy and dy · x_hat. The
        # contribution of the statistics is a function of those sums over all workers and linear in x. The kernel
        # divides by zero for a worker without rows.
        if x.numel():
            dx, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grads[0], x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            dx, grad_weight, grad_bias = torch.zeros_like(x), torch.zeros_like(mean), torch.zeros_like(mean)
        shared = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(shared)
        mean_dy, mean_dy_x_hat = (shared / count).chunk(2)
        inv_std = torch.rsqrt(var + ctx.eps)
        slope = inv_std.square() * weight * mean_dy_x_hat
        offset = inv_std * weight * mean_dy - slope * mean
        shape = [1, -1, *[1] * (x.dim() - 2)]
        dx = dx.addcmul(x, slope.view(shape).to(x.dtype), value=-1).sub_(offset.view(shape).to(x.dtype))
        # Gradients of weight and bias stay local: DistributedDataParallel averages them over the workers like
        # those of every other parameter. They are parts of the sum of the W local losses, of which DDP takes the mean.
        return dx, grad_weight, grad_bias, None


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel, and the number of values in it, over all workers.

    The moments of each worker are shared in one gather and combined as in Chan et al.: summing squares would lose the
    precision that makes N workers equal to one.
    """
    local = x if x.dtype in (torch.float32, torch.float64) else x.float()
    n = x.numel() // x.shape[1]
    if n:
        var, mean = torch.var_mean(local, [0, *range(2, x.dim())], correction=0)
    else:
        var = mean = local.new_zeros(x.shape[1])
    moments = gather(torch.cat([mean, var, mean.new_tensor([float(n)])])[None])
    means, variances, counts = moments[:, : len(mean)], moments[:, len(mean) : -1], moments[:, -1:]
    total = counts.sum()
    global_mean = (counts * means).sum(0) / total
    spread = variances + (means - global_mean).square()
    return global_mean, (counts * spread).sum(0) / total, total
