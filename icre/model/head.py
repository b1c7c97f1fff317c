"""Head: GeM pooling, BNNeck, classifier (docs/method.md section 1).

Shape letters: B images, C channels, K identities.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Output(NamedTuple):
    """Output of a network for a batch."""

    features: Tensor
    """f, B x C, float32: pooled features, the input of the metric loss."""
    embeddings: Tensor
    """g, B x C, float32: f after the BNNeck, not normalised."""
    logits: Tensor
    """B x K: scores of the training identities."""


class GeM(nn.Module):
    """Generalised mean over the positions of a map: (mean x^p)^(1/p), in float32 under any autocast."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = p
        self.eps = eps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map ``B x C x h x w`` to ``B x C``. Values are clamped to ``eps``: the root has no slope at 0."""
        powers = x_BCHW.float().clamp(min=self.eps).pow(self.p)
        return powers.mean(dim=(2, 3)).pow(1 / self.p)


class Head(nn.Module):
    """f = GeM(E); g = BN(f) with its bias held at 0; logits = W g."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = GeM()
        self.neck = nn.BatchNorm1d(channels)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(channels, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, map_BCHW: Tensor) -> Output:
        """Map E, ``B x C x h x w``, to the network's output."""
        features = self.pool(map_BCHW)
        embeddings = self.neck(features)
        return Output(features, embeddings, self.classifier(embeddings))
