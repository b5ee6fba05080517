"""Every choice of ``transfer`` in the Runner, and checkpoints that hold what it has trained."""

import pytest
import torch

from mmvars.engine.test import main as run_test
from mmvars.engine.train import main as run_train
from mmvars.errors import InputError
from mmvars.models import AbSViT, ViT
from mmvars.models.transfer import TRANSFERS
from mmvars.visualization.model import build_model, read_config

ARCH = dict(embed_dims=48, num_layers=2, num_heads=3)
PRETRAINED = """
model['backbone'].pop('reconstruction_loss_weight')
model['backbone'].update(
    transfer={transfer!r}, type='mmvars.{cls}',
    init_cfg=dict(type='Pretrained', checkpoint={file!r}, allow_new=('prior', 'feedback')))
"""
OPTIONS = {'prompt': "model['backbone'].update(prompt_cfg=dict(num_tokens=3))\n"}
CASES = [
    (framework, cls, choice)
    for framework, cls, choices in (
        ('seg', AbSViT, TRANSFERS),
        ('cls', AbSViT, TRANSFERS),
        ('seg', ViT, ['linear']),
    )
    for choice in choices
    if choice != 'end2end'
]


def write_config(toy, folder, framework, cls, transfer, more=''):
    """A config of a backbone that starts from a file, and the folder of its runs."""
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    pytest.importorskip('mmpretrain.models', exc_type=ImportError)
    if transfer in ('lora', 'top-down-lite'):
        pytest.importorskip('peft')
    file = folder / 'pretrained.pth'
    if not file.exists():
        torch.manual_seed(5)
        torch.save(cls(arch=ARCH, img_size=64).state_dict(), file)
    name = folder / f'{framework}-{transfer}.py'
    name.write_text(
        (toy / f'{framework}.py').read_text()
        + PRETRAINED.format(transfer=transfer, cls=cls.__name__, file=str(file))
        + OPTIONS.get(transfer, '')
        + more
    )
    return str(name)


def state_of(path):
    return torch.load(path, weights_only=False)['state_dict']


def train(config, folder, *options):
    options = ['max_iters=2', 'default_hooks.checkpoint.interval=1', *options]
    run_train([config, '--no-validate', '--work-dir', str(folder), '--cfg-options', *options])
    return state_of(folder / 'iter_2.pth')


@pytest.mark.slow
@pytest.mark.parametrize('framework, cls, transfer', CASES)
def test_a_run_that_saves_what_it_trains(framework, cls, transfer, toy, tmp_path, forget_runs):
    """Its checkpoints resume, and hold what the choice says; the rest is that of the config."""
    config = write_config(toy, tmp_path, framework, cls, transfer)
    trained = train(config, tmp_path / 'part', 'save_trained_only=True')
    forget_runs()
    options = ['save_trained_only=True', 'resume=True', f'load_from={tmp_path}/part/iter_1.pth']
    resumed = train(config, tmp_path / 'resumed', *options)
    assert trained.keys() == resumed.keys()
    for name, value in trained.items():
        torch.testing.assert_close(value, resumed[name], rtol=1e-5, atol=1e-6, msg=name)
    start = 'backbone.network.' + 'trunk.' * (cls is AbSViT)
    inside = {name.removeprefix(start) for name in trained if name.startswith(start)}
    assert {
        'linear': not inside,
        'top-down': not inside,
        'top-down-lite': not inside,
        'bias': inside and all(name.endswith('bias') for name in inside),
        'prompt': inside == {'prompt_embeddings', 'deep_prompt_embeddings'},
        'lora': inside and all('.lora_' in name for name in inside),
    }[transfer]
    if transfer == 'top-down-lite':
        assert all('lora_' in name for name in trained if '.feedback.' in name)
    model, _ = build_model(read_config(config), f'{tmp_path}/part/iter_2.pth', torch.device('cpu'))
    pretrained, state = torch.load(tmp_path / 'pretrained.pth'), model.state_dict()
    for name, value in state.items():
        source = trained if name in trained else pretrained
        assert torch.equal(
            value, source[name if source is trained else name.removeprefix('backbone.')]
        )


@pytest.mark.slow
def test_it_is_the_run_that_saves_everything(toy, tmp_path, forget_runs):
    """With moving averages, which hold the frozen weights too."""
    average = "custom_hooks = [dict(type='EMAHook')]\n"
    config = write_config(toy, tmp_path, 'seg', AbSViT, 'top-down-lite', average)
    whole = train(config, tmp_path / 'whole')
    forget_runs()
    part = train(config, tmp_path / 'part', 'save_trained_only=True')
    forget_runs()
    options = ['save_trained_only=True', 'resume=True', f'load_from={tmp_path}/part/iter_1.pth']
    resumed = train(config, tmp_path / 'resumed', *options)
    for name, value in part.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6, msg=name)
        torch.testing.assert_close(value, resumed[name], rtol=1e-5, atol=1e-6, msg=name)
    averages = torch.load(tmp_path / 'part' / 'iter_2.pth', weights_only=False)['ema_state_dict']
    assert {name.removeprefix('module.') for name in averages} - {'steps'} == part.keys()
    metrics = []
    for folder in ('whole', 'part'):
        forget_runs()
        run_test([config, f'{tmp_path}/{folder}/iter_2.pth', '--work-dir', str(tmp_path / folder)])
        metrics.append(next((tmp_path / folder).glob('*/*.json')).read_text())
    assert metrics[0].split('data_time')[0] == metrics[1].split('data_time')[0]


@pytest.mark.slow
class TestWhatIsRefused:
    @pytest.fixture
    def trained(self, toy, tmp_path):
        config = write_config(toy, tmp_path, 'seg', AbSViT, 'bias')
        options = ['--cfg-options', 'save_trained_only=True', 'max_iters=1']
        run_train([config, '--work-dir', str(tmp_path), '--no-validate', *options])
        return config, str(tmp_path / 'iter_1.pth')

    def test_another_trunk_or_none(self, trained, toy, tmp_path, forget_runs):
        config, checkpoint = trained
        torch.manual_seed(6)
        torch.save(AbSViT(arch=ARCH, img_size=64).state_dict(), tmp_path / 'other.pth')
        other = write_config(
            toy, tmp_path, 'seg', AbSViT, 'linear', "model['backbone'].pop('init_cfg')"
        )
        for name, file in ((config, tmp_path / 'other.pth'), (other, None)):
            options = {} if file is None else {'model.backbone.init_cfg.checkpoint': str(file)}
            forget_runs()
            with pytest.raises(InputError, match='holds a part of a network on the trunk vit_tiny'):
                build_model(read_config(name, options), checkpoint, torch.device('cpu'))
            words = [f'{key}={value}' for key, value in options.items()]
            with pytest.raises(InputError, match='holds a part of a network on the trunk vit_tiny'):
                run_test([name, checkpoint, *(['--cfg-options', *words] if words else [])])

    def test_another_transfer(self, trained, tmp_path, forget_runs):
        config, checkpoint = trained
        options = {'model.backbone.transfer': 'linear'}  # what trained is in the file
        build_model(read_config(config, options), checkpoint, torch.device('cpu'))
        options = {'model.backbone.transfer': 'prompt'}
        with pytest.raises(InputError, match='lacks trunk.prompt_embeddings, .*: use the config'):
            build_model(read_config(config, options), checkpoint, torch.device('cpu'))
        forget_runs()
        with pytest.raises(InputError, match='prompt_embeddings'):
            run_test([config, checkpoint, '--cfg-options', 'model.backbone.transfer=prompt'])

    def test_flexible_runner(self, toy, tmp_path):
        more = "runner_type = 'FlexibleRunner'\n"
        config = write_config(toy, tmp_path, 'seg', ViT, 'linear', more)
        with pytest.raises(InputError, match='save_trained_only needs the plain Runner'):
            train(config, tmp_path, 'save_trained_only=True')
