from __future__ import annotations

import pytest
import torch

from icre.model.head import GeM, Head


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_gem_agrees_with_a_loop(p: float) -> None:
    x = torch.randn(2, 3, 4, 5)
    got = GeM(p)(x)
    for b in range(2):
        for c in range(3):
            values = [max(v, 1e-6) ** p for v in x[b, c].flatten().tolist()]
            assert got[b, c].item() == pytest.approx((sum(values) / len(values)) ** (1 / p), rel=1e-5)


def test_gem_of_a_dead_channel_has_a_finite_gradient() -> None:
    x = torch.zeros(1, 2, 3, 3)
    x[0, 1, 1, 1] = 1
    x.requires_grad_()
    GeM()(x).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad[0, 1, 1, 1] > 0


def test_pooling_is_float32_under_autocast() -> None:
    x = torch.rand(4, 8, 6, 3)
    head = Head(8, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(x.bfloat16())
    assert output.features.dtype == output.embeddings.dtype == torch.float32
    assert torch.equal(output.features, GeM()(x.bfloat16().float()))


def test_neck_centres_the_features_and_keeps_its_bias() -> None:
    head = Head(8, 5).train()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    for _ in range(2):
        output = head(torch.rand(16, 8, 6, 3))
        torch.autograd.backward(torch.nn.functional.cross_entropy(output.logits, torch.arange(16) % 5))
        optimizer.step()
    assert torch.equal(head.neck.bias, torch.zeros(8))
    assert not torch.equal(head.neck.weight, torch.ones(8))
    torch.testing.assert_close(output.embeddings.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    want = (output.features - output.features.mean(0)) / output.features.std(0, correction=0)
    torch.testing.assert_close(output.embeddings / output.embeddings.std(0, correction=0), want, rtol=1e-2, atol=1e-2)


def test_classifier_has_no_bias_and_starts_small() -> None:
    head = Head(256, 400)
    assert head.classifier.bias is None
    assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.05)
