"""Learning-rate schedules."""

import pytest
import torch

from wae_lightning.schedules import DividedLR, OneCycle


def test_the_default_is_the_authors_manual_schedule():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = DividedLR(optimizer)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert (rates[0], rates[29], rates[30], rates[49], rates[50], rates[99], rates[100]) == (
        1, 1, 1 / 2, 1 / 2, 1 / 10, 1 / 10, 1 / 100,
    )  # fmt: skip


def test_its_state_is_plain_and_resumes():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = DividedLR(optimizer, milestones=[1], divisors=[4])
    optimizer.step()
    scheduler.step()
    state = scheduler.state_dict()
    again = DividedLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), milestones=[1], divisors=[4])
    again.load_state_dict(state)
    assert again.get_last_lr() == [0.25]


def test_each_milestone_needs_its_divisor():
    with pytest.raises(ValueError, match="each milestone needs its divisor, got 2 and 3"):
        DividedLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), milestones=[1, 2])


@pytest.mark.parametrize(("steps", "share", "peak"), [(8, 0.1, 1), (20, 0.3, 5), (2, 0.3, 0)])
def test_one_cycle_of_any_length_climbs_to_its_peak(steps, share, peak):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = OneCycle(optimizer, max_lr=2.0, total_steps=steps, pct_start=share, cycle_momentum=False)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert all(0 < rate <= 2 for rate in rates)
    assert peak == 0 or rates.index(max(rates)) == peak
    assert peak == 0 or max(rates) == pytest.approx(2)
