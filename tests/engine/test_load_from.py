"""What a run that starts from a file says of it: the file's, resampled, or initial values."""

import logging

import pytest
import torch
from tiny_timm import TINY

from mmvars.checkpoints import write_partial
from mmvars.engine.strict import StrictRunner
from mmvars.errors import InputError
from mmvars.models import VARS, AbSViT, ViT

assert TINY  # registered with timm

ARCH = dict(embed_dims=48, num_layers=2, num_heads=3)


class Model(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Linear(48, 3)


def load(model, state, tmp_path, monkeypatch) -> str:
    """Load a state dict as ``load_from`` of a training does; returns what the log says."""
    monkeypatch.setattr(StrictRunner, '__init__', lambda self: None)
    runner, lines = StrictRunner(), []
    runner.model, runner.cfg, runner._hooks = model, {}, []
    runner._training, runner._resume = True, False
    runner.logger = logging.getLogger('load_from')
    monkeypatch.setattr(runner.logger, 'info', lines.append)
    monkeypatch.setattr(runner.logger, 'warning', lines.append)
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'x.pth')
    runner.load_checkpoint(str(tmp_path / 'x.pth'))
    return '\n'.join(line for line in lines if line.startswith('load_from'))


def test_the_same_network(tmp_path, monkeypatch):
    model = Model(ViT(ARCH, img_size=32))
    count = len(model.backbone.state_dict())
    line = load(model, Model(ViT(ARCH, img_size=32)).state_dict(), tmp_path, monkeypatch)
    assert line == (
        f'load_from: of the {count} tensors of the backbone {count} are those of the file'
    )


def test_resampled_positions_are_counted_apart(tmp_path, monkeypatch):
    model, other = Model(ViT(ARCH, img_size=64)), Model(ViT(ARCH, img_size=32))
    count, before = len(model.backbone.state_dict()), model.backbone.trunk.pos_embed.clone()
    line = load(model, other.state_dict(), tmp_path, monkeypatch)
    assert f'of the {count} tensors of the backbone {count - 1} are those of the file, 1 ' in line
    assert line.endswith('1 resampled from it (trunk.pos_embed)')
    assert not torch.equal(model.backbone.trunk.pos_embed, before)


def test_atoms_of_another_grid(tmp_path, monkeypatch):
    arch = dict(ARCH, trunk='deit_convstem')
    small, large = (VARS(arch, 'vars_sd', img_size=size) for size in (32, 64))
    line = load(Model(large), Model(small).state_dict(), tmp_path, monkeypatch)
    assert 'resampled from it' in line and 'static_atoms' in line and 'initial' not in line


def test_what_keeps_initial_values_is_named(tmp_path, monkeypatch):
    model = Model(AbSViT(ARCH, img_size=32))
    initial = [key for key in model.backbone.state_dict() if 'trunk' not in key]
    trunk = {key: tensor for key, tensor in model.state_dict().items() if 'trunk' in key}
    line = load(model, trunk, tmp_path, monkeypatch)
    assert f', {len(initial)} keep initial values (prior.query, feedback.' in line
    state = model.state_dict()
    state['backbone.network.prior.query'] = torch.zeros(7)  # of another width: not loaded
    line = load(model, state, tmp_path, monkeypatch)
    assert line.endswith(', 1 keep initial values (prior.query)')
    many = load(model, {'backbone.network.prior.query': torch.zeros(48)}, tmp_path, monkeypatch)
    assert ' 1 are those of the file, ' in many
    assert 'trunk.cls_token, ' in many and many.endswith(f' and {len(state) - 2 - 6} more)')


@pytest.mark.parametrize('arch', [ARCH, dict(trunk='timm/vit_tiny_patch16_224', num_layers=2)])
@pytest.mark.parametrize('design', ['absvit', 'perceiver_io'])
def test_a_plain_backbone_fills_the_trunk_of_one_with_top_down_attention(
    arch, design, tmp_path, monkeypatch
):
    plain, model = Model(ViT(arch, img_size=32)), Model(AbSViT(arch, img_size=32, design=design))
    line = load(model, plain.state_dict(), tmp_path, monkeypatch)
    count = len(plain.backbone.state_dict())
    assert f'{count} are those of the file, ' in line and 'keep initial values (prior.query' in line
    assert torch.equal(model.head.weight, plain.head.weight)
    state = model.backbone.trunk.state_dict()
    assert all(torch.equal(state[k], v) for k, v in plain.backbone.trunk.state_dict().items())


def test_a_file_that_fills_nothing_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match='fills no tensor of the backbone'):
        load(Model(AbSViT(ARCH, img_size=32)), {'x': torch.zeros(1)}, tmp_path, monkeypatch)


@pytest.mark.parametrize('first', ['learned_query', 'learned_classes'])
def test_the_prior_stays_that_of_the_prototypes_of_init_cfg(first, tmp_path, monkeypatch):
    """Whose center and whitening are no others', of a first stage with prototypes or without."""
    arch, classes = 'timm/tiny_dinov2', dict(type='class_prototype', num_classes=3)
    options = dict(num_classes=3) if first == 'learned_classes' else {}
    source = AbSViT(arch, prior=dict(type=first, **options))
    state = {f'backbone.{name}': value + 1 for name, value in source.state_dict().items()}
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'part.pth'))
    backbone = AbSViT(arch, prior=classes, init_cfg=init_cfg)
    network = backbone.network
    names = ('prior.prototypes', 'prior.center', 'prior.whitening')
    held = {name: torch.randn_like(network.state_dict()[name]) for name in names}
    write_partial(init_cfg['checkpoint'], network, held)
    backbone.init_weights()
    text = load(Model(backbone), state, tmp_path, monkeypatch)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in held.items())
    assert f'the prior is that of {init_cfg["checkpoint"]}, ' in text
    assert 'backbone.network.prior.center, backbone.network.prior.whitening' in text
    name = 'feedback.decoders.0.gate'
    assert torch.equal(after[name], state[f'backbone.network.{name}'])

    decoders = {name: value for name, value in held.items() if name == 'prior.center'}
    write_partial(init_cfg['checkpoint'], network, decoders, overwrite=True)  # of `mmvars pretune`
    assert 'the prior is' not in load(Model(backbone), state, tmp_path, monkeypatch)
    assert torch.equal(network.prior.center, state['backbone.network.prior.center'])
