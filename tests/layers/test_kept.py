"""What is kept between forwards is never stale."""

import copy
import io

import pytest
import torch
from torch import nn

from mmvars.layers import kept as module
from mmvars.layers.kept import Kept, can_keep


@pytest.fixture
def counted():
    calls = []

    def make():
        calls.append(1)
        return object()

    return make, calls


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('shape', [(3, 3), (8, 8), (5, 7), (48, 48)])
@pytest.mark.parametrize('place', [0, -1, 4])
def test_any_number_that_changes_behind_torchs_back_is_seen(dtype, shape, place, counted):
    make, calls = counted
    weight, kept = nn.Parameter(torch.randn(shape).to(dtype)), Kept()
    first = kept.get([weight], make)
    assert kept.get([weight], make) is first and len(calls) == 1
    address, version = weight.data_ptr(), weight._version
    weight.data.view(-1)[place] += 1
    assert (weight.data_ptr(), weight._version) == (address, version)  # neither would tell
    assert kept.get([weight], make) is not first and len(calls) == 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('change', [lambda w: w.neg_(), lambda w: w[:, 1::2].neg_(),
                                    lambda w: w[:, 3::4].neg_()])
def test_other_signs_are_seen(dtype, change, counted):
    make, calls = counted
    weight, kept = torch.randn(96, 96).to(dtype), Kept()
    kept.get([weight], make)
    change(weight.data)
    kept.get([weight], make)
    assert len(calls) == 2
    weight[0, [1, 3]] *= -1  # two signs in one piece, before torch's eyes
    kept.get([weight], make)
    assert len(calls) == 3


def test_another_thread_in_between_changes_no_result(monkeypatch):
    kept, mine, theirs, derived = Kept(), torch.randn(4), torch.randn(4), torch.randn(3, 3)
    kept.get([mine], lambda: 'mine')
    kept.derive('a', derived, lambda: 'derived')
    seen = []

    def interrupted(tensor, exact, contents=module._contents):
        if tensor.shape == derived.shape and not seen:
            seen.append(kept.get([theirs], lambda: 'theirs'))
        return contents(tensor, exact)

    monkeypatch.setattr(module, '_contents', interrupted)
    assert kept.get([mine], lambda: 'made again') == 'mine' and seen == ['theirs']
    assert kept.get([mine], lambda: 'made again') == 'made again'


def test_exchanged_rows_columns_and_tensors_are_seen(counted):
    make, calls = counted
    weights, kept = [torch.randn(48, 48) for _ in range(2)], Kept()
    kept.get(weights, make)
    for number, change in enumerate([
            lambda w: w.copy_(w.flip(0)), lambda w: w.copy_(w.flip(1)),
            lambda w: w.copy_(w.t().clone()), lambda w: w.neg_()], start=2):
        change(weights[0].data)
        kept.get(weights, make)
        assert len(calls) == number
    kept.get(weights[::-1], make)
    assert len(calls) == 6


def test_other_sizes_precisions_and_numbers_of_tensors_are_seen(counted):
    make, calls = counted
    weight, kept = torch.zeros(8, 8), Kept()
    for number, sources in enumerate([[weight], [weight.double()], [torch.zeros(4, 16)],
                                      [weight, weight]], start=1):
        kept.get(sources, make)
        kept.get(sources, make)
        assert len(calls) == number


class TestDerived:

    @pytest.fixture
    def kept(self):
        return Kept(), torch.randn(8, 8), torch.randn(8, 8)

    def both(self, kept, base, source, made):
        kept.get([base], lambda: made.append('base'))
        kept.derive('a', source, lambda: made.append('derived'))

    @pytest.mark.parametrize('changed, expected', [
        (None, []), (0, ['base', 'derived']), (1, ['derived'])])
    def test_made_anew_where_either_changed(self, kept, changed, expected):
        kept, *tensors = kept
        made = []
        self.both(kept, *tensors, made)
        assert made == ['base', 'derived']
        if changed is not None:
            tensors[changed].data[3, 3] += 1
        self.both(kept, *tensors, made)
        assert made[2:] == expected
        self.both(kept, *tensors, made)
        assert made[2:] == expected

    def test_another_tensor_is_another_source_even_between(self, kept):
        kept, base, source = kept
        made = []
        self.both(kept, base, source, made)
        kept.derive('a', source.clone(), lambda: made.append('elsewhere'))
        kept.derive('b', source, lambda: made.append('named'))
        assert made[2:] == ['elsewhere', 'named']


def test_the_same_numbers_elsewhere_are_the_same(counted):
    make, calls = counted
    weight, kept = torch.randn(8, 8), Kept()
    kept.get([weight], make)
    kept.get([weight.clone()], make)
    assert len(calls) == 1


def test_copies_and_files_keep_nothing(counted):
    make, _ = counted
    weight, module = torch.randn(8, 8), nn.Linear(2, 2)
    module.kept = Kept()
    first = module.kept.get([weight], make)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert twin.kept.get([weight], make) is not first
    assert module.kept.get([weight], make) is first


def test_nothing_is_kept_where_it_would_be_differentiated_or_traced():
    x, seen = torch.ones(2), []
    assert not can_keep(x)
    with torch.no_grad():
        assert can_keep(x)
        assert can_keep(x.to('meta'))

        def traced(x):
            seen.append(can_keep(x))
            return x + 1

        torch.jit.trace(traced, x)
        assert torch.compile(lambda x: x + can_keep(x), backend='eager')(x).tolist() == [1, 1]
    assert seen[0] is False
