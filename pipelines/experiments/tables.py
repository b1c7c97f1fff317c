"""The paper's ablation tables as data (docs/method.md section 4).

A variant is a name and a set of recipe overrides. The first variant of a table is the reference for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One row of a table: the recipe with some keys changed."""

    name: str
    overrides: tuple[str, ...] = ()
    value: float | None = None
    """In a parameter sweep, the value of the table's parameter."""


def _with(*components: str) -> str:
    return f"components=[{','.join(components)}]"


def _sweep(symbol: str, key: str, chosen: float, values: Sequence[float]) -> tuple[Variant, ...]:
    """One variant per value; the chosen value comes first as the reference."""
    ordered = [chosen, *(value for value in values if value != chosen)]
    return tuple(Variant(f"{symbol} = {value:g}", (f"{key}={value:g}",), value) for value in ordered)


_TRIPLETS = {
    "batch-hard triplet": "batch_hard",
    "weighted regularised triplet": "weighted_regularized",
    "hetero-centre triplet": "hetero_center",
}

TABLES: dict[str, tuple[Variant, ...]] = {
    "components": (
        Variant("baseline", (_with(),)),
        Variant("MPFR", (_with("mpfr"),)),
        Variant("SDCE", (_with("sdce"),)),
        Variant("ICG", (_with("icg"),)),
        Variant("MPFR + SDCE", (_with("mpfr", "sdce"),)),
        Variant("MPFR + ICG", (_with("mpfr", "icg"),)),
        Variant("SDCE + ICG", (_with("sdce", "icg"),)),
        Variant("ICRE: MPFR + SDCE + ICG", (_with("mpfr", "sdce", "icg"),)),
    ),
    "mpfr": (
        Variant("stages 1-3, sigmoid masks, sum"),
        Variant("stages 2-4", ("model.mpfr_stages=[2,3,4]",)),
        Variant("softmax masks", ("model.mpfr_mask=softmax",)),
        Variant("no masks", ("model.mpfr_mask=none",)),
        Variant("concatenation", ("model.mpfr_fusion=concat",)),
    ),
    "sdce": (
        Variant("cross, then self"),
        Variant("self, then cross", ("model.sdce_order=self_cross",)),
        Variant("cross only", ("model.sdce_order=cross",)),
        Variant("self only, without MPFR", (_with("sdce", "icg"), "model.sdce_order=self")),
    ),
    "output": (
        Variant("BN0 starts at 0", ("model.output_gain=0",)),
        Variant("BN0 starts at 0.1", ("model.output_gain=0.1",)),
        Variant("BN0 starts at 0.3", ("model.output_gain=0.3",)),
        Variant("BN0 starts at 1", ("model.output_gain=1",)),
    ),
    "icg": (
        Variant("the other modality's centre, unit features"),
        Variant("both centres", ("loss.icg.centers=both",)),
        Variant("one centre without modality", ("loss.icg.centers=joint",)),
        Variant("raw features, ρ1 = 0.01", ("loss.icg.normalize=false", "loss.icg.rho1=0.01")),
    ),
    "losses": (
        Variant("ID", (_with("mpfr", "sdce"),)),
        *(
            Variant(f"ID + {words}", (_with("mpfr", "sdce"), f"loss.triplet={name}"))
            for words, name in _TRIPLETS.items()
        ),
        *(
            Variant(
                f"ID + {words}, unit features",
                (_with("mpfr", "sdce"), f"loss.triplet={name}", "loss.triplet_normalize=true"),
            )
            for words, name in _TRIPLETS.items()
        ),
        Variant("ID + ICG", (_with("mpfr", "sdce", "icg"),)),
    ),
    "lambda": _sweep("λ", "loss.icg.weight", 1.0, (0.1, 0.2, 0.5, 0.8, 1.0, 1.5, 2.0)),
    "rho1": _sweep("ρ1", "loss.icg.rho1", 0.1, (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5)),
}
"""Every option of the network and the loss is a row of one table. The last two are the sweeps of Figure 3."""
