"""The experiment that the stages are tested with."""

TINY = {
    "name": "tiny",
    "pool": {"dataset": "synthetic", "options": {"part": "pool", "images": 120, "size": [64, 32]}},
    "target": {
        "dataset": "synthetic",
        "options": {"part": "target", "size": [64, 32], "identities": 10, "test_identities": 6, "cameras": 3},
    },
    "backbone": {"name": "vit_tiny", "depth": 1, "img_size": [64, 32]},
    "pretrain": {
        "epochs": 1,
        "batch_size": 32,
        "out_dim": 128,
        "hidden_dim": 64,
        "bottleneck_dim": 32,
        "local_crops": 1,
        "precision": "fp32",
    },
    "finetune": {"epochs": 1, "identities": 4, "precision": "fp32"},
    "score": {"precision": "fp32"},
}
