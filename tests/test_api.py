from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sophon_bench.api import Batch, DefenseView, Domain, Samples
from sophon_bench.data.tasks.classification import Classification


def samples(count: int) -> Samples:
    return Samples(torch.arange(count).float()[:, None], torch.arange(count))


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 2**32))
def test_batches_have_one_size_and_drop_nothing(count: int, size: int, seed: int) -> None:
    batches = samples(count).batches(size, torch.Generator().manual_seed(seed))
    drawn = [batch.targets for batch in itertools.islice(batches, 12)]
    assert {len(targets) for targets in drawn} == {min(size, count)}
    stream = torch.cat(drawn)
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count].tolist()) == list(range(count))


def test_batches_pair_inputs_with_targets_and_follow_the_seed() -> None:
    one, two = (samples(9).batches(4, torch.Generator().manual_seed(3)) for _ in range(2))
    for a, b in itertools.islice(zip(one, two, strict=False), 8):
        assert torch.equal(a.inputs[:, 0].long(), a.targets)
        assert torch.equal(a.targets, b.targets)


def test_bad_samples_and_batch_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one; got 0 inputs"):
        samples(0)
    with pytest.raises(ValueError, match="3 inputs and 2 targets"):
        Samples(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        samples(3).batches(0, torch.Generator())


def test_accuracy_counts_the_first_outputs_and_no_non_finite_row() -> None:
    logits = torch.tensor(
        [[0.0, 2.0, 1.0], [3.0, 0.0, 1.0], [0.0, 0.0, 9.0], [float("nan"), 5.0, 0]]
    )
    task = Classification(2)
    found = Samples(logits, torch.tensor([1, 0, 0, 1]))
    assert task.utility(lambda x: x, found) == 0.5
    batch = Batch(logits[:3], torch.tensor([1, 0, 0]))
    expected = -torch.log_softmax(logits[:3], 1)[torch.arange(3), batch.targets].mean()
    assert torch.isclose(task.loss(lambda x: x, batch), expected)


def test_seeded_draws_follow_the_view_and_leave_the_global_state() -> None:
    domain = Domain(Classification(2), samples(2), samples(2))

    def view(seed: int) -> DefenseView:
        rng = torch.Generator().manual_seed(seed)
        return DefenseView(original=domain, restricted=domain, device=torch.device("cpu"), rng=rng)

    def drawn(here: DefenseView) -> list[float]:
        with here.seeded():
            return torch.rand(3).tolist()

    before = torch.get_rng_state()
    first, again = view(1), view(1)
    assert drawn(first) == drawn(again)
    assert drawn(first) != drawn(view(2))
    assert drawn(first) not in (drawn(view(1)), drawn(first))
    with torch.random.fork_rng(devices=[]):
        seed = int(torch.randint(2**63 - 1, (), generator=view(1).rng))
        torch.default_generator.manual_seed(seed)
        assert torch.rand(3).tolist() == drawn(view(1))
    assert torch.equal(torch.get_rng_state(), before)
