"""The numbers of the papers, as they come out for the sizes that the papers name."""

from fractions import Fraction

import pytest

from rayreid.config import Backbone, Pretrain
from rayreid.config.method_defaults import BY_METHOD, PUBLISHED, USED_BY, warmup
from rayreid.errors import UserError

SECTION = set(Pretrain.model_fields)


def recipe(method: str, backbone: str, batch_size: int, epochs: int, stem: str = "patchify"):
    return Pretrain(method=method, batch_size=batch_size, epochs=epochs).recipe(Backbone(name=backbone, stem=stem))


def test_moco_v3_on_vit_is_the_paper_s():
    found = recipe("mocov3", "vit_small", 1024, 300)
    assert (found.optimizer, found.lr, found.warmup_epochs, found.weight_decay) == ("adamw", 6e-4, 40, 0.1)
    assert (found.temperature, found.teacher_momentum, found.out_dim, found.hidden_dim) == (0.2, 0.99, 256, 4096)
    assert (found.drop_path, found.clip, found.queue, found.freeze_patch) == (0.0, None, 0, True)


def test_moco_v3_on_resnet_is_its_public_code_s():
    found = recipe("mocov3", "resnet50", 4096, 300)
    assert (found.optimizer, found.lr, found.warmup_epochs, found.weight_decay) == ("lars", 4.8, 10, 1e-6)
    assert (found.temperature, found.teacher_momentum, found.freeze_patch) == (1.0, 0.99, False)


def test_moco_v2_is_the_paper_s():
    found = recipe("mocov2", "resnet50", 256, 200)
    assert (found.optimizer, found.lr, found.warmup_epochs, found.weight_decay) == ("sgd", 0.03, 0, 1e-4)
    assert (found.temperature, found.teacher_momentum, found.out_dim, found.queue) == (0.2, 0.999, 128, 65536)


@pytest.mark.parametrize("backbone", ["vit_small", "swin_tiny"])
def test_moby_is_the_paper_s(backbone):
    found = recipe("moby", backbone, 512, 300)
    assert (found.optimizer, found.lr, found.warmup_epochs, found.weight_decay) == ("adamw", 1e-3, 5, 0.05)
    assert (found.temperature, found.teacher_momentum, found.queue, found.drop_path) == (0.2, 0.99, 4096, 0.2)
    assert (found.min_lr, found.clip) == (5e-6, 5.0)


def test_dino_is_the_same_on_every_backbone():
    found = [recipe("dino", name, 512, 100) for name in ("vit_small", "swin_tiny", "resnet50")]
    assert found[0] == found[1] == found[2]


def test_a_warm_up_is_a_share_of_the_epochs_and_leaves_one():
    assert [warmup(n, Fraction(40, 300)) for n in (300, 100, 15, 8, 2, 1)] == [40, 14, 2, 2, 1, 0]
    assert warmup(100, Fraction(0)) == 0


def test_what_is_given_takes_the_place_of_the_recipe_s():
    config = Pretrain(method="mocov3", lr=0.5, warmup_epochs=3, temperature=0.1, freeze_patch=False)
    found = config.recipe(Backbone())
    assert (found.lr, found.warmup_epochs, found.temperature, found.freeze_patch) == (0.5, 3, 0.1, False)


@pytest.mark.parametrize(("stem", "frozen"), [("patchify", True), ("conv", False), ("ics", False)])
def test_auto_freezes_the_patch_projection_of_patchify(stem, frozen):
    assert recipe("mocov3", "vit_small", 256, 10, stem).freeze_patch is frozen


@pytest.mark.parametrize(
    ("method", "backbone", "reason"),
    [
        ("mocov2", "vit_small", "SGD without warm-up does not train a Transformer"),
        ("mocov2", "swin_tiny", "take mocov3 or moby"),
        ("mocov3", "swin_tiny", "for a Swin take moby"),
        ("moby", "resnet50", "for ResNet-50 take mocov2 or mocov3"),
    ],
)
def test_a_pair_without_a_recipe_is_refused_with_the_reason(method, backbone, reason):
    with pytest.raises(UserError, match=f"pretrain.method {method} is not for backbone {backbone}: .*{reason}"):
        recipe(method, backbone, 256, 10)


def test_the_tables_speak_of_keys_and_methods_that_there_are():
    assert set(BY_METHOD) | set(USED_BY) <= SECTION
    for families in PUBLISHED.values():
        assert all(set(family.numbers) - {"optimizer"} <= set(BY_METHOD) for family in families.values())
    assert {user for users in USED_BY.values() for user in users} == set(PUBLISHED)
