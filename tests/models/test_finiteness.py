import pytest
import torch

from rayreid.errors import UserError
from rayreid.models.finiteness import check_finite, not_finite

NAN, INF = float("nan"), float("inf")


def test_each_tensor_is_named_with_the_number_and_kind_of_its_faulty_values():
    state = {
        "a": torch.ones(3),
        "b": torch.tensor([1.0, NAN, NAN]),
        "c": torch.tensor([[INF, NAN], [-INF, 0]], dtype=torch.bfloat16),
        "steps": torch.tensor(3),
    }
    assert not_finite(state) == {"b": "2 NaN of 3 values", "c": "1 NaN and 2 infinite of 4 values"}


def test_the_message_names_some_and_counts_the_rest():
    with pytest.raises(
        UserError, match=r"w\.pth holds weights that are not finite: a \(1 NaN of 1 values\); "
    ) as error:
        check_finite({"a": torch.tensor([NAN])}, "w.pth")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"t4 \(.*\) and 2 more \(rayreid weights inspect"):
        check_finite({f"t{i}": torch.tensor([NAN]) for i in range(7)}, "w.pth")
    check_finite({"a": torch.zeros(2)}, "w.pth")
