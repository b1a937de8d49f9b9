import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.checkpoints import read_checkpoint
from rayreid.models.weights import load_weights
from rayreid.models.wrappers import opened, peeled, roots, without_modules


def vit(seed=0):
    torch.manual_seed(seed)
    return build_backbone("vit_tiny", img_size=(64, 32), embed_dim=24, num_heads=3, depth=2)


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def other(state):
    return {name: torch.full_like(value, 7) for name, value in state.items()}


class Model(nn.Module):
    """A home-made model: a backbone, wrapped or not, beside a head."""

    def __init__(self, backbone, name="net"):
        super().__init__()
        setattr(self, name, backbone)
        self.my_head = nn.Linear(24, 2)


def compiled(module):
    return torch.compile(module).state_dict()


def averaged(module):
    return AveragedModel(module).state_dict()


OPTIMIZER = {"optimizer": {"state": {0: {"step": torch.zeros(1), "exp_avg": torch.zeros(3)}}, "param_groups": []}}

WRAPPED = {
    "torch.compile": compiled,
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "DataParallel of torch.compile": lambda net: nn.DataParallel(torch.compile(net)).state_dict(),
    "torch.compile of DataParallel": lambda net: compiled(nn.DataParallel(net)),
    "averaged": averaged,
    "averaged in DataParallel": lambda net: nn.DataParallel(AveragedModel(net)).state_dict(),
    "outer head": lambda net: Model(nn.DataParallel(net)).state_dict(),
    "outer head, named backbone": lambda net: Model(nn.DataParallel(net), "backbone").state_dict(),
    "outer head, DataParallel around both": lambda net: nn.DataParallel(Model(nn.DataParallel(net))).state_dict(),
    "outer head of a compiled one": lambda net: {"model": compiled(Model(torch.compile(net)))},
    "FSDP": lambda net: under("_fsdp_wrapped_module.", net.state_dict()),
    "checkpointed blocks": lambda net: {
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for name, v in net.state_dict().items()
    },
    "Lightning": lambda net: {
        "state_dict": under("model.", Model(net, "encoder").state_dict()) | {"criterion.centres": torch.zeros(2)},
        "pytorch-lightning_version": "2.5.0",
        "callbacks": {"EMA": {"weights": other(net.state_dict())}},
        "optimizer_states": [OPTIMIZER["optimizer"]],
        "hyper_parameters": {"lr": 0.1},
        "epoch": 3,
    },
    "Lightning with a teacher": lambda net: {
        "state_dict": under("teacher_backbone.", net.state_dict()) | under("student_backbone.", other(net.state_dict()))
    },
    "timm's EMA": lambda net: {"state_dict": other(net.state_dict()), "state_dict_ema": net.state_dict(), "epoch": 3},
    "DeiT's EMA": lambda net: {"model": other(net.state_dict()), "model_ema": net.state_dict(), **OPTIMIZER},
    "EMA of a wrapped one": lambda net: {
        "ema": {"module": compiled(net), "updates": 3},
        "model": other(net.state_dict()),
    },
    "DeepSpeed": lambda net: {"module": under("module.", net.state_dict()), **OPTIMIZER},
    "home-made": lambda net: {"epoch": 3, "my_network": {"weights": net.state_dict()}, **OPTIMIZER},
    "home-made, deep": lambda net: {
        "checkpoint": {"state": {"model": compiled(net)}, "scheduler": {"x": torch.ones(1)}}
    },
    "home-made, two": lambda net: {"net_a": other(net.state_dict()), "ema_net": net.state_dict()},
    "nested state_dict": lambda net: {"state_dict": {"teacher": under("module.backbone.", net.state_dict())}},
    "a ReID model in another": lambda net: (
        under("model.base.", net.state_dict())
        | {"model.bottleneck.weight": torch.ones(24), "model.classifier.weight": torch.zeros(3, 24)}
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_any_nesting_of_wrappers_loads_whole(tmp_path, name):
    source = vit()
    torch.save(WRAPPED[name](source), tmp_path / "w.pth")
    target = vit(1)
    report = load_weights(target, tmp_path / "w.pth")
    assert report.whole
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_what_lies_outside_is_reported_and_which_network_was_taken(tmp_path):
    torch.save(WRAPPED["outer head"](vit()), tmp_path / "w.pth")
    ignored = read_checkpoint(tmp_path / "w.pth").ignored
    assert ignored == dict.fromkeys(["my_head.weight", "my_head.bias"], "outside of net.*, which holds the backbone")
    torch.save(WRAPPED["DeiT's EMA"](vit()), tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").facts["taken"] == "model_ema (beside model)"
    torch.save(WRAPPED["a ReID model in another"](vit()), tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").format == "reid"


@pytest.mark.parametrize(
    "content",
    [
        {"net_a": vit().state_dict(), "net_b": vit().state_dict()},
        under("one.", vit().state_dict()) | under("two.", vit().state_dict()),
        under("model.one.", vit().state_dict()) | under("model.two.", vit().state_dict()),
    ],
)
def test_several_networks_between_which_nothing_decides_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth holds several networks \(.*\): save the tensors of one") as error:
        read_checkpoint(tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def test_containers_are_opened_to_the_tensors_with_the_facts_beside_them():
    tensors = {"a": torch.zeros(1)}
    assert opened({"state_dict": {"teacher": tensors}, "epoch": 3, "arch": "x"}, "w") == (
        tensors,
        "teacher",
        {"epoch": 3, "arch": "x"},
    )
    assert opened(tensors, "w")[1:] == ("", {})


def test_names_of_wrapping_modules_are_taken_out_unless_two_networks_would_meet():
    one = torch.zeros(1)
    assert set(without_modules({"module.a.module.b": one, "_orig_mod.c": one})) == {"a.b", "c"}
    assert set(without_modules({"module.a": one, "a": one})) == {"module.a", "a"}


def test_the_prefixes_of_networks_are_found_by_a_layer_of_each_kind():
    one = torch.zeros(1)
    names = ["a.blocks.0.norm1.weight", "b.layers.0.blocks.0.norm1.weight", "b.layers.1.blocks.0.norm1.weight"]
    names += ["c.layer4.0.conv1.weight", "d.blocks.0.0.norm1.weight", "decoder_blocks.0.norm1.weight"]
    assert roots(dict.fromkeys(names, one)) == {"a.", "b.", "c.", "d."}
    assert roots({"blocks.0.norm1.weight": one}) == {""}
    assert peeled({"a.blocks.0.norm1.weight": one, "x": one})[:2] == ("a.", {"blocks.0.norm1.weight": one})


FIGURE = torch.tensor(0.5)


@pytest.mark.parametrize(
    "content",
    [
        {"encoder": vit().state_dict(), "best_mAP": FIGURE},
        {"model": vit().state_dict(), "ema": {"num_updates": torch.tensor(3), "decay": FIGURE}},
        {"model": vit().state_dict(), "ema": {"decay": 0.9, "last": torch.zeros(7)}},
        {"model": {"net": vit().state_dict(), "step": FIGURE}},
    ],
)
def test_lone_numbers_beside_a_network_are_passed_over(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    report = load_weights(vit(1), tmp_path / "w.pth")
    assert report.whole and "taken" not in report.facts


@pytest.mark.parametrize(
    ("write", "taken"),
    [
        (lambda one, two: {"model": two, "teacher": one}, "teacher (beside model)"),
        (lambda one, two: {"net_a": two, "net_a_ema": one}, "net_a_ema (beside net_a)"),
        (lambda one, two: {"model": two, "model_ema": one}, "model_ema (beside model)"),
        (lambda one, two: under("model.", two) | under("ema_model.", one), "ema_model.* (beside model.*)"),
    ],
)
def test_a_choice_between_networks_is_reported(tmp_path, write, taken):
    state = vit().state_dict()
    torch.save(write(state, other(state)), tmp_path / "w.pth")
    target = vit(1)
    report = load_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.state_dict()["norm.weight"], state["norm.weight"])
    assert f"network taken: {taken}" in str(report) and f"  known: taken: {taken}" in report.lines()
