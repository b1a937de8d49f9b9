"""Outcomes for tests, said by what matters in them."""

from rayreid.evaluation.outcomes import Outcome


def outcome(strategy="cfs", fraction=0.5, seed=0, mAP=0.5, images=None, **changes) -> Outcome:
    given = {
        "label": f"{strategy} {fraction} {seed} {changes.get('stem', '')}",
        "backbone": "vit_tiny",
        "stem": "patchify",
        "method": "dino",
        "adapt": "none",
        "strategy": strategy,
        "fraction": fraction,
        "images": round(1000 * (fraction or 0)) if images is None else images,
        "seed": str(seed),
        "scores": {"mAP": mAP, "rank1": mAP + 0.1, "rank5": 0.9, "rank10": 0.95, "mINP": mAP / 2},
        "gpu_hours": 2 * (fraction or 0) + 1,
        "hours": 1.0,
    }
    return Outcome(**{**given, **changes})
