import torch

from model_history import save
from rayreid.models.neck import Neck
from rayreid.publishing.publication import fold, read_publication


def neck(width: int) -> Neck:
    torch.manual_seed(1)
    return Neck(torch.rand(width) + 0.5, torch.randn(width))


def test_a_neck_is_folded_where_a_norm_of_its_width_precedes_it(tmp_path):
    published = read_publication(save(tmp_path / "a.safetensors"))
    assert not published.folded and published.neck is None
    assert not fold(published.backbone, neck(4))
    assert fold(published.backbone, neck(192))
