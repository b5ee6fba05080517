"""timm's vision transformers as trunks: their numbers, and the second pass from the textbook."""

import copy
import io
import math
import pickle

import pytest
import timm
import torch
from timm.layers import LayerScale
from tiny_timm import NAMES, PATCH, TINY, randomize, timm_twin
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.checkpoints import load_timm_weights
from mmvars.errors import InputError
from mmvars.layers import TokenGrid, is_block
from mmvars.networks import TOP_DOWN_DESIGNS, create_model
from mmvars.networks.timm_trunk import TimmTrunk

SIZES = [(32, 32), (37, 18)]  # as stored; no square and no multiple of the patch
every_network = pytest.mark.parametrize('name', NAMES, ids=TINY)
FEW = ('dinov2_reg', 'deit_distilled', 'eva02', 'rope_mixed', 'beit_shared')
few_networks = pytest.mark.parametrize(
    'name',
    [pytest.param(f'timm/tiny_{n}', id=n, marks=[pytest.mark.slow] * (n not in FEW)) for n in TINY],
)
REAL = {  # of each: blocks that are built
    'vit_small_patch16_224.augreg_in21k': 3,
    'deit_tiny_patch16_224.fb_in1k': 12,
    'deit_tiny_distilled_patch16_224.fb_in1k': 3,
    'deit3_small_patch16_224.fb_in22k_ft_in1k': 3,
    'vit_small_patch8_224.dino': 2,
    'vit_small_patch14_dinov2.lvd142m': 3,
    'vit_small_patch14_reg4_dinov2.lvd142m': 3,
    'vit_base_patch16_224.mae': 2,
    'vit_base_patch32_clip_224.openai': 2,
    'vit_base_patch16_siglip_224.webli': 2,
    'vit_base_patch32_siglip_256.v2_webli': 2,
    'eva02_small_patch14_336.mim_in22k_ft_in1k': 3,
    'eva02_base_patch16_clip_224.merged2b': 2,
    'vit_small_patch16_dinov3.lvd1689m': 3,
    'beit_base_patch16_224.in22k_ft_in22k': 2,
    'beitv2_base_patch16_224.in1k_ft_in22k': 2,
    'vit_pe_core_tiny_patch16_384.fb': 3,
    'vit_small_patch16_rope_mixed_224.naver_in1k': 12,
    'vit_base_patch16_rpn_224.sw_in1k': 2,
}


def build(name, top_down='absvit', **options):
    """A network with random numbers in every parameter of its trunk, and fresh feedback."""
    network = create_model(name, top_down, **dict(num_classes=5) | options).eval()
    randomize(network if top_down is None else network.trunk)
    return network


def opened(network, gate=0.7):
    """``network`` with its gates open, and a prior that most tokens have a part of."""
    with torch.no_grad():
        tokens = network.trunk(torch.randn(2, 3, 32, 32)).tokens
        if network.prior is not None:
            network.prior.query.copy_(tokens.mean(dim=(0, 1)) + 0.1)
        for decoder in getattr(network.feedback, 'decoders', ()):
            decoder.gate.fill_(gate)
    return network


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """To 1e-6 of the largest number."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


def check_against_timm(network, name, sizes, **options) -> None:
    trunk, state = network.trunk, network.trunk.model.state_dict()
    everything = range(trunk.depth)
    for size in sizes:
        images, twin = torch.randn(2, 3, *size), timm_twin(name, state, size, **options)
        tokens, maps = twin.forward_intermediates(images)
        has_head = not isinstance(twin.head, nn.Identity)
        plain = trunk(images, everything)
        opened(network)
        results = [plain, network(images, alpha=0.0, out_indices=everything).second]
        assert (network(images).second.tokens - tokens).abs().max() > 1e-3  # the gates are open
        opened(network, gate=0.0)
        results.append(network(images, out_indices=everything).second)
        for result in results:
            assert_equal(result.tokens, tokens)
            if has_head:
                assert_equal(trunk.forward_head(result), twin.forward_head(tokens))
            for output, grid, expected in zip(
                result.intermediates, result.grids, maps, strict=True
            ):
                assert_equal(grid.to_map(output), expected)


@every_network
@torch.no_grad()
def test_off_is_timm(name):
    network = build(name)
    check_against_timm(network, name.removeprefix('timm/'), SIZES, num_classes=5)


@pytest.mark.slow
@pytest.mark.parametrize('name', REAL)
@torch.no_grad()
def test_off_is_timm_for_real_names(name):
    network = build(f'timm/{name}', depth=REAL[name], num_classes=None)
    patch = network.trunk.strides[0]
    sizes = [(4 * patch, 6 * patch), (5 * patch - 3, 3 * patch + 2)]
    check_against_timm(network, name, sizes, depth=REAL[name])


# The second pass, written out


def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.Identity):
        return x
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    return centered / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T + (0 if bias is None else bias)


def projections(attn: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of queries, keys and values."""
    if attn.qkv is None:
        return [(layer.weight, layer.bias) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
    weights = attn.qkv.weight.chunk(3)
    if attn.qkv.bias is not None:
        return list(zip(weights, attn.qkv.bias.chunk(3), strict=True))
    return list(zip(weights, (getattr(attn, f'{part}_bias', None) for part in 'qkv'), strict=True))


def rotated(x: Tensor, rope: Tensor, half: bool) -> Tensor:
    """``x (D,)`` turned by angles of one token: pairs are neighbors, or halves apart."""
    sin, cos = rope.chunk(2)
    out, width = torch.empty_like(x), len(x)
    for i in range(width // 2):
        a, b = (i, i + width // 2) if half else (2 * i, 2 * i + 1)
        out[a] = x[a] * cos[a] - x[b] * sin[a]
        out[b] = x[b] * cos[b] + x[a] * sin[b]
    return out


def textbook_attention(trunk: TimmTrunk, index: int, x: Tensor, t: Tensor, grid) -> Tensor:
    """One image ``(N, C)``, head by head; the value is that of ``x + t``."""
    attn, model, prefix = trunk.blocks[index].attn, trunk.model, grid.num_prefix
    rope = getattr(model, 'rope', None)
    angles = None if rope is None else rope.get_embed(shape=list(grid[:2]))
    q, k, v = (
        linear(tokens, *projection)
        for tokens, projection in zip((x, x, x + t), projections(attn), strict=True)
    )
    width = q.shape[1] // attn.num_heads
    outputs = []
    for head in range(attn.num_heads):
        kv_head = head * k.shape[1] // q.shape[1]
        qs = q[:, head * width : (head + 1) * width]
        ks, vs = (part[:, kv_head * width : (kv_head + 1) * width] for part in (k, v))
        if hasattr(attn, 'q_norm'):
            qs, ks = layer_norm(qs, attn.q_norm), layer_norm(ks, attn.k_norm)
        if angles is not None:
            of_head = angles[index, head] if model.rope_mixed else angles
            qs, ks = (
                torch.stack(
                    [
                        row if n < prefix else rotated(row, of_head[n - prefix], attn.rotate_half)
                        for n, row in enumerate(part)
                    ]
                )
                for part in (qs, ks)
            )
        logits = qs @ ks.T / math.sqrt(width)
        for table in (
            getattr(attn, 'relative_position_bias_table', None),
            getattr(getattr(model, 'rel_pos_bias', None), 'relative_position_bias_table', None),
        ):
            if table is not None:
                logits = logits + relative_positions(table[:, head], grid)
        outputs.append(logits.softmax(dim=1) @ vs)
    mixed = torch.cat(outputs, dim=1)
    return attn.proj(layer_norm(mixed, getattr(attn, 'norm', nn.Identity())))


def relative_positions(table: Tensor, grid) -> Tensor:
    """BEiT's bias ``(N, N)`` of one head: a number for each offset, and three for the class."""
    height, width = grid[:2]
    places = [divmod(n, width) for n in range(height * width)]
    bias = table.new_empty(len(places) + 1, len(places) + 1)
    bias[0, :], bias[:, 0], bias[0, 0] = table[-3], table[-2], table[-1]
    for i, (y, x) in enumerate(places):
        for j, (y2, x2) in enumerate(places):
            offset = (y - y2 + height - 1) * (2 * width - 1) + x - x2 + width - 1
            bias[i + 1, j + 1] = table[offset]
    return bias


def textbook_block(trunk: TimmTrunk, index: int, x: Tensor, t: Tensor, grid) -> Tensor:
    block = trunk.blocks[index]

    def scale(tokens: Tensor, number: int) -> Tensor:
        layer = getattr(block, f'ls{number}', None)
        gamma = getattr(block, f'gamma_{number}', None)
        if isinstance(layer, LayerScale):
            gamma = layer.gamma
        return tokens if gamma is None else tokens * gamma

    if 'PostNorm' in type(block).__name__ or 'ResPost' in type(block).__mro__[2].__name__:
        x = x + layer_norm(textbook_attention(trunk, index, x, t, grid), block.norm1)
        return x + layer_norm(block.mlp(x), block.norm2)
    mixed = textbook_attention(trunk, index, layer_norm(x, block.norm1), t, grid)
    x = x + scale(mixed, 1)
    return x + scale(block.mlp(layer_norm(x, block.norm2)), 2)


@every_network
@torch.no_grad()
def test_the_second_pass_is_that_of_the_textbook(name):
    trunk = build(name, None).double()
    images = torch.randn(1, 3, 4 * PATCH, 4 * PATCH, dtype=torch.double)
    tokens, grid = trunk.forward_embed(images)
    signals = [torch.randn_like(tokens) for _ in trunk.blocks]
    output = trunk.forward_blocks(tokens, grid, signals, out_indices=(0, 1))
    expected = tokens[0]
    for index, actual in enumerate(output.intermediates):
        expected = textbook_block(trunk, index, expected, signals[index][0], grid)
        assert_equal(actual[0], expected)
    assert_equal(output.tokens, trunk.model.norm(output.intermediates[1]))


@few_networks
@torch.no_grad()
def test_signals_of_the_rivals(name):
    """On all three projections it is another input; as a mask it multiplies the value alone."""
    for injection in ('qkv', 'mask'):
        trunk = build(name, 'absvit_qkv' if injection == 'qkv' else 'mask_attention').trunk
        trunk = trunk.double()
        tokens, grid = trunk.forward_embed(torch.randn(2, 3, 32, 24).double())
        attn, (position, *_) = trunk.blocks[0].attn, trunk._positions(grid, tokens)
        signal = torch.rand_like(tokens if injection == 'qkv' else tokens[..., :1])
        output = attn(tokens, position, signal)
        if injection == 'qkv' and getattr(attn, 'gate', None) is None:
            assert_equal(output, attn(tokens + signal, position))
        if injection == 'mask':
            value = attn.queries_keys_values(tokens, position, None)[2]
            weights = attn.attention_probabilities(tokens, position)
            value = value.repeat_interleave(attn.num_heads // value.shape[1], dim=1)
            mixed = (weights @ (value * signal.unsqueeze(1))).transpose(1, 2).flatten(2)
            assert_equal(output, attn.proj(getattr(attn, 'norm', nn.Identity())(mixed)))


@few_networks
@torch.no_grad()
def test_probabilities_are_those_of_the_forward(name):
    trunk = build(name, None).double()
    tokens, grid = trunk.forward_embed(torch.randn(2, 3, 32, 24).double())
    attn, position = trunk.blocks[1].attn, list(trunk._positions(grid, tokens))[1]
    signal = torch.randn_like(tokens)
    for t in (None, signal):
        weights = attn.attention_probabilities(tokens, position, t)
        assert_equal(attn.mean_attention(tokens, position, t), weights.mean(dim=2))
        value = attn.queries_keys_values(tokens, position, t)[2]
        value = value.repeat_interleave(attn.num_heads // value.shape[1], dim=1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        expected = attn.proj(getattr(attn, 'norm', nn.Identity())(mixed))
        assert_equal(attn(tokens, position, t), expected)


# Gradients


@few_networks
def test_gradients_reach_prior_gates_and_feedback(name):
    network = build(name).train()
    images = torch.randn(2, 3, 40, 24)

    def gradients() -> dict[str, Tensor]:
        network.zero_grad()
        network.forward_head(network(images).second).square().sum().backward()
        missing = [key for key, p in network.named_parameters() if p.grad is None]
        assert not missing
        return {key: p.grad for key, p in network.named_parameters()}

    fresh = gradients()
    with torch.no_grad():
        network.prior.query.copy_(network.trunk(images).tokens.mean(dim=(0, 1)))
    fresh = gradients()
    gates = [gradient for key, gradient in fresh.items() if key.endswith('gate')]
    assert len(gates) == 2 and all(gradient.any() for gradient in gates)
    assert not any(
        fresh[key].any()
        for key in fresh
        if key.endswith(('.weight', 'query')) and (key.startswith(('feedback', 'prior')))
    )
    opened(network)
    for key, gradient in gradients().items():
        assert gradient.isfinite().all() and gradient.any(), key


def test_a_frozen_trunk_makes_no_graph_in_its_first_pass():
    network = opened(build('timm/tiny_dinov2_reg'))
    network.trunk.requires_grad_(False)
    first = network.forward_first_pass(torch.randn(2, 3, 32, 32))
    assert not first.output.tokens.requires_grad and not first.embedded.requires_grad
    assert network.forward_second_pass(first).second.tokens.requires_grad


# Options


@few_networks
def test_gradient_checkpointing_changes_no_number(name):
    networks = [opened(build(name, grad_checkpointing=flag)).train() for flag in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    images = torch.randn(2, 3, 40, 24)
    for network in networks:
        network.forward_head(network(images).second).square().sum().backward()
    for (key, a), b in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)


def test_gradient_checkpointing_runs_blocks_again():
    calls = []
    for flag in (False, True):
        network = build('timm/tiny_eva02', grad_checkpointing=flag).train()
        count: list[int] = []
        network.trunk.blocks[1].register_forward_pre_hook(lambda *_, c=count: c.append(1))
        network.forward_head(network(torch.randn(1, 3, 32, 32)).second).sum().backward()
        calls.append(len(count))
    assert calls == [2, 4]


@few_networks
def test_stochastic_depth_drops_the_branches_of_the_last_block(name):
    network = build(name, None, drop_path_rate=0.5)
    images = torch.randn(16, 3, 32, 32)
    tokens, grid = network.forward_embed(images)
    (_, after), _ = network.forward_blocks(tokens, grid, keep_block_io=True).block_io
    assert torch.equal(network(images).tokens, network(images).tokens)
    network.train()
    (_, (block_input, _)) = network.forward_blocks(tokens, grid, keep_block_io=True).block_io
    assert_equal(block_input, after)  # rises from zero
    outputs = torch.stack([network.blocks[1](tokens, _position(network, grid)) for _ in range(4)])
    dropped = (outputs == tokens).flatten(2).all(dim=-1).float().mean()
    assert 0.05 < dropped < 0.5  # both branches: a quarter


def _position(trunk, grid):
    return list(trunk._positions(grid, torch.empty(0)))[1]


@pytest.mark.parametrize('design', TOP_DOWN_DESIGNS)
@pytest.mark.parametrize('name', ['timm/tiny_dinov2_reg', 'timm/tiny_eva02', 'timm/tiny_beit'])
@torch.no_grad()
def test_designs_and_their_options(name, design):
    network = build(name, design, **dict(num_passes=3) if design != 'perceiver_io' else {})
    images = torch.randn(2, 3, 40, 24)
    plain = network.trunk(images).tokens
    if design not in ('perceiver_io', 'mask_attention'):
        assert_equal(network(images).second.tokens, plain)
        opened(network)
    output = network(images)
    assert output.second.tokens.isfinite().all()
    assert not torch.allclose(output.second.tokens, plain, rtol=1e-3)
    assert len(output.top_down) == (0 if design == 'perceiver_io' else 2)
    torch.testing.assert_close(network.fuse()(images).second.tokens, output.second.tokens)
    torch.testing.assert_close(network.unfuse()(images).second.tokens, output.second.tokens)


@torch.no_grad()
def test_the_formula_of_the_gated_feedback():
    """``s_L`` = tokens, ``t_l = tanh(g_l) alpha w LN(B_l s_l)``, w from centered tokens."""
    network = opened(build('timm/tiny_dinov2_reg'))
    network.prior.center.normal_()
    for decoder in network.feedback.decoders:
        decoder.to_below.weight.normal_(), decoder.to_value.weight.normal_()
    images, prior = torch.randn(2, 3, 40, 24), torch.randn(2, 24)
    first = network.forward_first_pass(images)
    tokens = first.output.tokens
    weights = F.cosine_similarity(tokens - network.prior.center, prior[:, None], dim=-1)
    signal, signals = tokens, []
    for decoder in reversed(network.feedback.decoders):
        signal = signal @ decoder.to_below.weight.T
        value = signal @ decoder.to_value.weight.T
        normed = (value - value.mean(-1, keepdim=True)) / value.std(-1, correction=0, keepdim=True)
        signals.insert(0, decoder.gate.tanh() * 1.7 * weights.clamp(0, 1)[..., None] * normed)
    output = network.forward_second_pass(first, prior, alpha=1.7)
    for actual, expected in zip(output.top_down, signals, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    second = network.trunk.forward_blocks(first.embedded, first.grid, signals)
    torch.testing.assert_close(output.second.tokens, second.tokens, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_first_pass_of_half_the_size():
    network = opened(build('timm/tiny_dinov3', first_pass_scale=0.5))
    output = network(torch.randn(2, 3, 80, 48))
    assert output.first.grid[:2] == (5, 3) and output.second.grid[:2] == (10, 6)
    assert output.token_weights.shape[1] == 60 + network.trunk.num_prefix


@pytest.mark.parametrize('prior', ['learned_query', 'given', 'class_prototype'])
@torch.no_grad()
def test_priors(prior):
    network = build('timm/tiny_siglip', prior=prior)
    for decoder in network.feedback.decoders:
        decoder.gate.fill_(0.5)
    images, vectors = torch.randn(3, 3, 32, 32), torch.randn(3, 24)
    outputs = [network(images, prior=vectors).second.tokens]
    outputs += [network(images, prior=vectors[0]).second.tokens]
    assert_equal(outputs[0][:1], outputs[1][:1])
    assert not torch.allclose(outputs[0][1:], outputs[1][1:])
    if prior == 'class_prototype':
        rows = network.prior.prototypes
        assert torch.equal(rows, network.trunk.model.head.weight) or rows.shape == (5, 24)
        ids = torch.tensor([1, 0, 4])
        by_id = network(images, prior=ids).second.tokens
        assert_equal(by_id, network(images, prior=rows[ids]).second.tokens)
    if prior == 'given':
        with pytest.raises(InputError, match='pass one'):
            network(images)


@torch.no_grad()
def test_only_the_first_blocks():
    for name in ('timm/tiny_rope_mixed', 'timm/tiny_beit_shared', 'timm/tiny_eva'):
        whole, part = build(name), build(name, depth=1)
        state = {
            key: value
            for key, value in whole.trunk.state_dict().items()
            if not key.startswith('model.blocks.1')
        }
        part.trunk.load_state_dict(state)
        images = torch.randn(2, 3, 40, 24)
        expected = whole.trunk(images, out_indices=(0,)).intermediates[0]
        assert_equal(part(images, out_indices=(0,)).second.intermediates[0], expected)
        assert len(part.feedback.decoders) == 1


@few_networks
@torch.no_grad()
def test_the_output_that_feedback_starts_from_is_normalized(name):
    network = build(name)
    output = network(torch.randn(1, 3, 32, 32), reconstruction=True)
    tokens, grid = network.trunk.forward_embed(torch.randn(1, 3, 32, 32))
    plain = network.trunk.forward_blocks(tokens, grid, keep_block_io=True)
    assert torch.equal(plain.block_io[-1][1], plain.tokens)
    assert torch.equal(plain.block_io[0][0], tokens)
    assert torch.equal(plain.block_io[0][1], plain.block_io[1][0])
    assert output.reconstruction.shape == (2,)


@pytest.mark.parametrize('name', ['timm/tiny_eva02', 'timm/tiny_beit', 'timm/tiny_deit_distilled'])
@torch.no_grad()
def test_copies(name):
    network = opened(build(name))
    images = torch.randn(2, 3, 40, 24)
    expected = network(images).second.tokens
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    copies = [
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        torch.load(file, weights_only=False),
    ]
    for twin in copies:
        assert torch.equal(twin(images).second.tokens, expected)
        twin.trunk.blocks[0].attn.proj.weight.zero_()
        assert torch.equal(network(images).second.tokens, expected)


@few_networks
def test_parts_and_names(name):
    trunk = build(name, None)
    assert len(trunk.blocks) == trunk.depth == len(trunk.widths) == len(trunk.strides) == 2
    assert all(is_block(block) for block in trunk.blocks)
    assert trunk.strides == (PATCH, PATCH) and trunk.in_chans == 3
    keys = {key.removeprefix('model.') for key in trunk.state_dict()}
    assert keys == set(timm.create_model(name.removeprefix('timm/'), num_classes=5).state_dict())
    layers = {key: trunk.layer_id(key) for key, _ in trunk.named_parameters()}
    assert set(layers.values()) == {None, 0, 1}
    assert layers['model.blocks.1.attn.proj.weight'] == 1
    names = dict(trunk.named_parameters())
    assert trunk.no_weight_decay() <= set(names) | {
        f'model.{key}' for key in ('pos_embed', 'cls_token', 'reg_token', 'dist_token')
    }
    tail = ('model.blocks', 'model.norm.', 'model.fc_norm', 'model.head', 'model.attn_pool')
    embedding = {
        id(parameter)
        for part in trunk.embed_modules()
        for parameter in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }
    for key, parameter in names.items():
        assert (id(parameter) in embedding) == (not key.startswith(tail)), key


# Bad input


def refused(*words):
    return pytest.raises(InputError, match='(?s)' + '.*'.join(words))


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('timm/vit_smal_patch14_dinov2', ['no network', 'vit_small_patch14_dinov2']),
        ('timm/vit_small_patch14_dinov2.lvd142', ['no weights', 'lvd142m']),
        ('timm/resnet50', ['plain vision transformers', 'vit_small_patch14']),
        ('timm/swin_tiny_patch4_window7_224', ['plain vision transformers']),
        ('timm/vit_base_r50_s16_224', ['plain vision transformers']),
        ('timm/samvit_base_patch16', ['plain vision transformers']),
        ('timm/tiny_parallel', ['ParallelThingsBlock', 'EvaBlock']),
        ('timm/tiny_diff', ['DiffAttention', 'EvaAttention']),
        ('timm/', ['no network']),
    ],
)
def test_networks_that_cannot_be_had_are_refused_by_name(name, words):
    with refused(*words):
        create_model(name, 'absvit')


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(mixer='vars_d'), ['attention of its own']),
        (dict(double_value_bias=True), ['value bias counts once']),
        (dict(depth=3), ['depth', '2']),
        (dict(depth=0), ['depth']),
        (dict(drop_path_rate=1.5), ['drop_path_rate']),
        (dict(in_chans=0), ['in_chans']),
        (dict(img_size=3), ['img_size', 'patch']),
        (dict(img_size=(32, -8)), ['img_size']),
        (dict(img_size='32'), ['img_size']),
        (dict(num_classes=-1), ['num_classes']),
        (dict(embed_dim=8), ['embed_dim', 'img_size']),
        (dict(num_prompts=8), ['num_prompts']),
        (dict(grad_checkpointing=1), ['grad_checkpointing']),
    ],
)
@pytest.mark.parametrize('name', ['timm/tiny_vit', 'timm/tiny_beit'])
def test_arguments_are_refused_by_name(name, options, words):
    with refused(*words):
        create_model(name, 'absvit', **options)


def test_images_are_refused_by_size():
    network = build('timm/tiny_dinov3')
    with refused('at least one patch', '8', '7x32'):
        network(torch.randn(1, 3, 7, 32))
    with refused('no classifier'):
        headless = build('timm/tiny_deit_distilled', num_classes=0)
        headless.forward_head(headless(torch.randn(1, 3, 32, 32)).second)


def test_a_block_with_more_than_one_class_of_attention_is_refused():
    model = timm.create_model('tiny_vit')
    model.blocks[1].attn = nn.MultiheadAttention(24, 2)
    with refused('timm/mine', 'MultiheadAttention'):
        TimmTrunk(model, 'timm/mine')


@torch.no_grad()
def test_positions_of_a_stored_grid_and_channels():
    for name in ('timm/tiny_vit', 'timm/tiny_dinov3', 'timm/tiny_beit'):
        network = build(name, img_size=(24, 48), in_chans=1)
        images = torch.randn(2, 1, 24, 48)
        twin = timm_twin(
            name.removeprefix('timm/'),
            network.trunk.model.state_dict(),
            (24, 48),
            img_size=(24, 48),
            in_chans=1,
            num_classes=5,
        )
        assert_equal(network(images).second.tokens, twin.forward_features(images))
    assert isinstance(network.trunk.forward_embed(images)[1], TokenGrid)


# Files


@pytest.mark.parametrize('name', ['timm/tiny_deit_distilled', 'timm/tiny_beit'])
@torch.no_grad()
def test_weights_as_timm_publishes_them(name, tmp_path):
    source = build(name, None, num_classes=7)
    torch.save(dict(model=source.model.state_dict()), tmp_path / 'weights.pth')
    for options in (dict(num_classes=0), dict(num_classes=0, depth=1), dict(num_classes=7)):
        trunk = build(name, **options, pretrained=str(tmp_path / 'weights.pth')).trunk
        load_timm_weights(trunk, str(tmp_path / 'weights.pth'))
        for key, tensor in trunk.state_dict().items():
            assert torch.equal(tensor, source.state_dict()[key]), key
    trunk = build(name, num_classes=0, img_size=(48, 24), in_chans=1).trunk
    load_timm_weights(trunk, str(tmp_path / 'weights.pth'))
    expected = source.model.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(trunk.model.patch_embed.proj.weight, expected)


def test_an_old_timm_is_named(monkeypatch):
    monkeypatch.setattr('timm.__version__', '1.0.15')
    with pytest.raises(InputError, match='needs timm 1.0.22 or newer, found 1.0.15'):
        create_model('timm/vit_tiny_patch16_224')


def test_the_names_that_people_know_lead_to_those_of_timm():
    for typed, meant in (
        ('dinov2_vits14', 'vit_small_patch14_dinov2'),
        ('siglip2_base', 'vit_base_patch16_siglip'),
        ('vit_smal_patch14_dinov2', 'vit_small_patch14_dinov2'),
    ):
        with pytest.raises(InputError, match=f'did you mean .*{meant}'):
            create_model(f'timm/{typed}')
