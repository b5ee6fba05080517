"""The recorders see both passes, change nothing, and leave nothing behind."""

import pytest
import torch

from mmvars.analysis import (AttentionRecorder, TopDownRecorder, default_layer, resolve_layer,
                             token_norm_map)
from mmvars.errors import InputError
from mmvars.networks import build_network

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3, num_classes=4)


@pytest.fixture
def absvit():
    torch.manual_seed(0)
    network = build_network('absvit_tiny_patch16', **SMALL).eval()
    with torch.no_grad():  # fresh decoders are too weak at this width to be told from rounding
        for parameter in network.feedback.parameters():
            parameter.mul_(20)
    return network


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return build_network('vit_tiny_patch16', **SMALL).eval()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 24, 40)


def hook_count(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_probabilities_sum_to_one_and_reproduce_the_fused_output(absvit, images):
    attention = absvit.trunk.blocks[2].attn
    seen = []  # input, top-down signal, output of each call
    handle = attention.register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    with torch.no_grad(), AttentionRecorder(absvit, layers=[2]) as recorder:
        absvit(images)
    handle.remove()
    assert len(recorder.passes) == 2
    for (x, _, signal, output), (probabilities, ) in zip(seen, recorder.passes, strict=True):
        assert probabilities.shape == (2, 3, 16, 16)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 3, 16))
        weight, bias = attention.qkv.weight[48:], attention.qkv.bias[48:]
        value = x @ weight.T + bias
        if signal is not None:
            value = value + signal.decode() @ weight.T + bias
        heads = value.unflatten(2, (3, 8)).transpose(1, 2)
        mixed = (probabilities @ heads).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attention.proj(mixed), output)


def test_the_two_passes_are_told_apart(absvit, images):
    with torch.no_grad(), AttentionRecorder(absvit) as recorder:
        absvit(images, alpha=10.)
    bottom_up, top_down = recorder.passes
    assert len(bottom_up) == len(top_down) == 5
    # Queries and keys of the first block do not see the signal; those of later blocks do.
    torch.testing.assert_close(bottom_up[0], top_down[0])
    assert (bottom_up[4] - top_down[4]).abs().max() > 1e-3


def test_a_plain_vit_and_a_forward_without_feedback_have_one_pass(vit, absvit, images):
    for network, arguments in ((vit, {}), (absvit, {'feedback': False})):
        with torch.no_grad(), AttentionRecorder(network, layers=[-1]) as recorder:
            network(images, **arguments)
        assert len(recorder.passes) == 1


def test_the_row_of_one_query_can_be_kept_alone(absvit, images):
    with torch.no_grad(), AttentionRecorder(absvit, [1]) as whole, \
            AttentionRecorder(absvit, [1], query=0) as row:
        absvit(images)
    torch.testing.assert_close(row.passes[1][0], whole.passes[1][0][:, :, :1])


@pytest.mark.parametrize('recorder_class', [AttentionRecorder, TopDownRecorder])
def test_recording_changes_no_output_and_leaves_nothing_behind(absvit, images, recorder_class):
    state = {name for m in absvit.modules() for name in vars(m)}
    hooks = hook_count(absvit)
    with torch.no_grad():
        expected = absvit(images).final.tokens
        with recorder_class(absvit) as recorder:
            assert hook_count(absvit) > hooks
            recorded = absvit(images).final.tokens
    assert torch.equal(recorded, expected)
    assert hook_count(absvit) == hooks
    assert {name for m in absvit.modules() for name in vars(m)} == state
    with recorder:  # reusable
        pass
    assert hook_count(absvit) == hooks


@pytest.mark.parametrize('recorder_class', [AttentionRecorder, TopDownRecorder])
def test_hooks_go_when_the_forward_fails(absvit, recorder_class):
    hooks = hook_count(absvit)
    with pytest.raises(InputError, match='smaller than one patch'), recorder_class(absvit):
        absvit(torch.zeros(1, 3, 4, 4))
    assert hook_count(absvit) == hooks


def test_a_second_forward_replaces_the_records(absvit, images):
    with torch.no_grad(), AttentionRecorder(absvit, [0]) as attention, \
            TopDownRecorder(absvit) as tokens:
        absvit(images)
        absvit(images[:1])
    assert [p[0].shape[0] for p in attention.passes] == [1, 1]
    assert [t.shape[0] for t in tokens.tokens] == [1, 1]


def test_the_backward_pass_of_gradient_checkpointing_is_no_third_pass(images):
    network = build_network('absvit_tiny_patch16', **SMALL, grad_checkpointing=True).train()
    with AttentionRecorder(network, [3]) as recorder, TopDownRecorder(network, 3) as tokens:
        network(images).final.tokens.sum().backward()
    assert len(recorder.passes) == len(tokens.tokens) == 2


def test_tokens_are_those_of_the_block_in_both_passes(absvit, images):
    with torch.no_grad(), TopDownRecorder(absvit, layer=-2) as recorder:
        output = absvit(images, out_indices=(3, ))
    assert recorder.layer == 3
    torch.testing.assert_close(recorder.tokens[1], output.top_down.intermediates[0])
    plain = absvit(images, out_indices=(3, ), feedback=False).bottom_up.intermediates[0]
    torch.testing.assert_close(recorder.tokens[0], plain)
    assert token_norm_map(recorder.tokens[0], output.bottom_up.grid).shape == (2, 3, 5)


def test_prior_and_scale_given_to_the_recorder_reach_the_network(absvit, images):
    prior = torch.randn(24)
    with torch.no_grad(), TopDownRecorder(absvit, prior=prior, alpha=10.) as recorder:
        absvit(images, prior=None, alpha=None)
    expected = absvit(images, prior=prior, alpha=10.)
    torch.testing.assert_close(recorder.output.token_mask, expected.token_mask)
    torch.testing.assert_close(recorder.output.final.tokens, expected.final.tokens)
    assert absvit.alpha == 1.


def test_with_alpha_zero_all_signals_are_zero_whatever_the_prior(absvit, images):
    # Not the plain ViT: a zero signal still adds the value bias a second time.
    passes = []
    for prior in (None, torch.randn(24)):
        with torch.no_grad(), TopDownRecorder(absvit, prior=prior, alpha=0.) as recorder:
            absvit(images)
        assert all(signal.abs().max() == 0 for signal in recorder.output.decoded_signals())
        passes.append(recorder.tokens)
    torch.testing.assert_close(passes[0], passes[1])


def test_a_plain_vit_has_no_mask_and_refuses_a_prior(vit, images):
    with torch.no_grad(), TopDownRecorder(vit) as recorder:
        vit(images)
    assert len(recorder.tokens) == 1 and recorder.output.token_mask is None
    with pytest.raises(InputError, match='need feedback'), TopDownRecorder(vit, alpha=2.):
        vit(images)


def test_the_default_layer_is_the_last_of_all_but_three():
    assert [default_layer(depth) for depth in (1, 2, 3, 4, 5, 12)] == [0, 0, 0, 0, 1, 8]
    assert resolve_layer(None, 12) == 8
    assert [resolve_layer(i, 12) for i in (0, 11, -1, -12)] == [0, 11, 11, 0]


@pytest.mark.parametrize('layer', [12, -13])
def test_a_layer_that_does_not_exist_is_refused(layer):
    with pytest.raises(InputError, match=f'layer must be .* 0 to 11 .* got {layer}'):
        resolve_layer(layer, 12)


def test_a_network_without_attention_is_refused():
    with pytest.raises(InputError, match='Linear has no attention'):
        AttentionRecorder(torch.nn.Linear(2, 2))


def test_a_recorder_cannot_be_entered_twice(absvit):
    with TopDownRecorder(absvit) as recorder, pytest.raises(InputError, match='already'):
        recorder.__enter__()
