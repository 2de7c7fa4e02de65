"""How well a label detects the contexts of its feature (Paulo et al. 2024, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from sae_engine.schema.labels import DetectionScore


def detection_score(truths: Sequence[bool], judged: Sequence[bool]) -> DetectionScore | None:
    """Compare judgments with the truth; None unless there are contexts of both kinds.

    Balanced accuracy is the mean of the recall of both kinds, so that it does not matter how many
    there are of each.
    """
    pairs = list(zip(truths, judged, strict=True))
    activating = sum(truths)
    silent = len(pairs) - activating
    if not activating or not silent:
        return None
    found = sum(truth and said for truth, said in pairs)
    said = sum(judged)
    rejected = sum(not truth and not said for truth, said in pairs)
    return DetectionScore(
        precision=found / said if said else None,
        recall=found / activating,
        balanced_accuracy=(found / activating + rejected / silent) / 2,
        activating=activating,
        silent=silent,
    )
