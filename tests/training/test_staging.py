import pytest
import torch

from rayreid.training.staging import AtOnce, SideStream, lane_for, one_ahead


class Noting:
    """A lane that notes what is started and what is taken."""

    def __init__(self):
        self.events = []

    def start(self, work):
        result = work()
        self.events.append(("started", result))

        def take():
            self.events.append(("taken", result))
            return result

        return take


def test_the_next_piece_is_started_before_one_is_handed_out():
    lane = Noting()
    for piece, made in one_ahead(iter("abc"), str.upper, lane):
        lane.events.append(("used", made))
        assert made == piece.upper()
    assert lane.events == [
        ("started", "A"),
        ("started", "B"),
        ("taken", "A"),
        ("used", "A"),
        ("started", "C"),
        ("taken", "B"),
        ("used", "B"),
        ("taken", "C"),
        ("used", "C"),
    ]


@pytest.mark.parametrize("pieces", [[], [1], [1, 2, 3]])
def test_every_piece_comes_once_and_in_order(pieces):
    assert list(one_ahead(pieces, lambda n: -n, AtOnce())) == [(n, -n) for n in pieces]


def test_what_goes_wrong_while_preparing_is_raised():
    def fail(piece):
        raise ValueError(piece)

    with pytest.raises(ValueError, match="bad"):
        list(one_ahead(["bad"], fail, AtOnce()))


def test_a_cpu_has_no_queue():
    assert isinstance(lane_for(torch.device("cpu")), AtOnce)


@pytest.mark.gpu
def test_a_side_stream_s_work_is_done_before_it_is_used():
    device = torch.device("cuda")
    lane = lane_for(device)
    assert isinstance(lane, SideStream)
    host = [torch.full((4_000_000,), float(n), pin_memory=True) for n in range(12)]

    def prepare(values):
        there = values.to(device, non_blocking=True)
        for _ in range(50):
            there = there * 1.0
        return [there + 1]

    sums = []
    for _, (made,) in one_ahead(host, prepare, lane):
        sums.append(made.double().mean())
        del made  # its memory may serve the next piece, but not before the mean was taken
    assert torch.stack(sums).tolist() == [n + 1.0 for n in range(12)]
