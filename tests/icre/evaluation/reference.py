"""The metrics once more, as one plain loop over the queries in Python floats. Slow, and easy to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Reference:
    cmc: list[float]
    mAP: float
    mINP: float
    queries: int
    skipped: int


def reference_ranking(dist, q_pids, g_pids, q_camids, g_camids, *, camera_rule, cmc, max_rank=20):
    found = [0] * max_rank
    precisions, penalties, skipped = [], [], 0
    for row, pid, cam in zip(dist, q_pids, q_camids, strict=True):
        kept = []
        for index, (g_pid, g_cam) in enumerate(zip(g_pids, g_camids, strict=True)):
            if camera_rule == "same_camera" and g_pid == pid and g_cam == cam:
                continue
            if camera_rule == "sysu" and cam == 3 and g_cam == 2:
                continue
            kept.append((float(row[index]), index, g_pid))
        ranked = [g_pid for _, _, g_pid in sorted(kept)]
        if pid not in ranked:
            skipped += 1
            continue
        hits, precision = 0, 0.0
        for rank, g_pid in enumerate(ranked, start=1):
            if g_pid == pid:
                hits += 1
                precision += hits / rank
                last = rank
        precisions.append(precision / hits)
        penalties.append(hits / last)
        places = list(dict.fromkeys(ranked)) if cmc == "identity" else ranked
        for k in range(places.index(pid), max_rank):
            found[k] += 1
    counted = len(precisions)
    return Reference(
        cmc=[count / counted for count in found] if counted else [],
        mAP=sum(precisions) / counted if counted else 0.0,
        mINP=sum(penalties) / counted if counted else 0.0,
        queries=counted,
        skipped=skipped,
    )
