from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from icre.model.sdce import SDCE, Attention, AttentionStage, Order, ResidualOutput


def without_position(order: Order) -> SDCE:
    module = SDCE(6, grid=(3, 2), dim=8, heads=2, order=order).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("_position"):
            torch.nn.init.zeros_(parameter)
    return module


def permute(x: Tensor, order: Tensor) -> Tensor:
    """Exchange the places of a map."""
    return x.flatten(2)[:, :, order].reshape(x.shape)


def test_attention_agrees_with_a_loop_over_heads_and_tokens() -> None:
    attention = Attention(6, heads=3)
    query, context = torch.randn(2, 4, 6), torch.randn(2, 5, 6)
    q, k, v = (
        x.double() @ layer.weight.double().T
        for x, layer in ((query, attention.query), (context, attention.key), (context, attention.value))
    )
    want = torch.zeros(2, 4, 6, dtype=torch.float64)
    for b in range(2):
        for h in (slice(0, 2), slice(2, 4), slice(4, 6)):
            for n in range(4):
                scores = [(q[b, n, h] @ k[b, m, h]).exp() ** (1 / math.sqrt(2)) for m in range(5)]
                for m in range(5):
                    want[b, n, h] += scores[m] / sum(scores) * v[b, m, h]
    want = want @ attention.out.weight.double().T + attention.out.bias.double()
    torch.testing.assert_close(attention(query, context).double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "heads"), [(8, 3), (8, 0), (8, -2)])
def test_heads_that_do_not_divide_the_width_are_refused(dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"heads={heads}"):
        SDCE(6, grid=(3, 2), dim=dim, heads=heads)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="self_self"):
        SDCE(6, grid=(3, 2), dim=8, heads=2, order="self_self")  # type: ignore[arg-type]


def test_cross_attention_ignores_the_order_of_what_it_reads_and_keeps_its_own() -> None:
    stage = AttentionStage(8, 2, cross=True)
    deep, shallow = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    shuffle = torch.randperm(6)
    z1 = stage(deep, shallow)
    torch.testing.assert_close(stage(deep, shallow[:, shuffle]), z1)
    torch.testing.assert_close(stage(deep[:, shuffle], shallow), z1[:, shuffle])
    assert not torch.allclose(stage(deep, shallow + torch.randn(2, 6, 8)), z1, atol=1e-3)


@pytest.mark.parametrize("order", ["cross_self", "cross", "self", "self_cross"])
def test_without_position_sdce_only_knows_sets_of_places(order: Order) -> None:
    module = without_position(order)
    x4 = torch.randn(2, 6, 3, 2)
    shallow = None if order == "self" else torch.randn(2, 8, 3, 2)
    shuffle = torch.tensor([4, 2, 0, 5, 1, 3])
    with torch.no_grad():
        z = module(x4, shallow)
        moved = module(permute(x4, shuffle), shallow)
        read = z if shallow is None else module(x4, permute(shallow, shuffle))
    torch.testing.assert_close(moved, permute(z, shuffle), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read, z, rtol=1e-4, atol=1e-5)


def test_position_embeddings_tell_places_apart() -> None:
    module = SDCE(6, grid=(3, 2), dim=8, heads=2).eval()
    x4, shallow, shuffle = torch.randn(2, 6, 3, 2), torch.randn(2, 8, 3, 2), torch.tensor([1, 0, 2, 3, 4, 5])
    with torch.no_grad():
        z, moved = module(x4, shallow), module(permute(x4, shuffle), shallow)
    assert not torch.allclose(moved, permute(z, shuffle), atol=1e-4)


def test_stages_run_in_the_order_that_is_asked_for() -> None:
    x4, shallow = torch.randn(2, 6, 3, 2), torch.randn(2, 8, 3, 2)
    module = SDCE(6, grid=(3, 2), dim=8, heads=2, order="self_cross").eval()
    with torch.no_grad():
        d = (module.deep(x4) + module.deep_position).flatten(2).transpose(1, 2)
        assert module.shallow_position is not None
        s = (shallow + module.shallow_position).flatten(2).transpose(1, 2)
        first, second = module.cascade
        assert first.norm_context is None and second.norm_context is not None
        query = first.norm(d)
        z = d + first.attention(query, query)
        z = z + second.attention(second.norm(z), second.norm_context(s))
        z = z + module.refine(z)
        got = module(x4, shallow)
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), z)


def test_another_grid_interpolates_the_position_embeddings() -> None:
    module = SDCE(6, grid=(3, 2), dim=8, heads=2).eval()
    ramp = torch.linspace(-1, 1, 3)[:, None].expand(3, 2)
    with torch.no_grad():
        module.deep_position.copy_(ramp)
        z = module(torch.zeros(1, 6, 6, 4), torch.zeros(1, 8, 6, 4))
        # With a position that is the same everywhere, the size of the grid cannot matter.
        for parameter in (module.deep_position, module.shallow_position):
            assert parameter is not None
            parameter.copy_(torch.arange(8.0)[:, None, None].expand(8, 3, 2))
        own = module(torch.zeros(1, 6, 3, 2), torch.zeros(1, 8, 3, 2))
        larger = module(torch.zeros(1, 6, 6, 4), torch.zeros(1, 8, 6, 4))
    assert z.shape == (1, 8, 6, 4)
    torch.testing.assert_close(larger, own[:, :, :1, :1].expand(1, 8, 6, 4), rtol=1e-4, atol=1e-4)


def test_the_output_starts_at_x4_and_still_learns() -> None:
    output = ResidualOutput(8, 6)
    x4, z = torch.rand(4, 6, 3, 2), torch.randn(4, 8, 3, 2)
    e = output(x4, z)
    assert torch.equal(e, x4)
    (e * torch.randn_like(e)).sum().backward()
    assert output.bn0.weight.grad is not None and output.bn0.weight.grad.abs().min() > 0


@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_the_output_can_start_with_a_share_of_the_refined_map(gain: float) -> None:
    output = ResidualOutput(8, 6, gain=gain)
    x4, z = torch.rand(4, 6, 3, 2), torch.randn(4, 8, 3, 2)
    mapped = torch.einsum("cd,bdhw->bchw", output.conv.weight[:, :, 0, 0], z)
    scaled = (mapped - mapped.mean((0, 2, 3), keepdim=True)) / mapped.std((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(output(x4, z), (x4 + gain * scaled).clamp(min=0), rtol=1e-3, atol=1e-3)
