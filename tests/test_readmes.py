"""What the READMEs show works: links, commands, options, code. Their numbers are the metafiles'."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
METHODS = sorted(CONFIGS.glob('*/README.md'))
PAGES = [
    ROOT / 'README.md',
    ROOT / 'CHANGELOG.md',
    ROOT / '.github' / 'CONTRIBUTING.md',
    CONFIGS / 'README.md',
    *METHODS,
    *sorted((ROOT / 'tools').rglob('README.md')),
]
TABLE_CONFIGS = {
    'absvit/README.md': 'absvit_upernet_ade20k',
    'vars/README.md': 'rvt-ti16-vars-sd_upernet_1xb8-400iter_mini-cityscapes-128x256',
    'README.md': 'absvit_upernet_cityscapes',
    'timm/README.md': 'dinov2-b14-absvit_upernet_2xb8-160k_ade20k-518x518',
}
"""Page below configs/ -> the config that the options in its tables are applied to."""


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', path.read_text(), re.DOTALL)


def _commands(path: Path) -> list[list[str]]:
    """The commands of `mmvars` in code blocks and in the text, split into words."""
    text = path.read_text()
    lines = '\n'.join(_blocks(path, 'bash')).replace('\\\n', ' ').splitlines()
    prose = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    lines += [code.replace('\n', ' ') for code in re.findall(r'`(mmvars [^`]+)`', prose)]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith('mmvars ')]
    return [command[1:] for command in words if len(command) > 2]


def _option_cells(path: Path) -> list[str]:
    """Sets of options in the second column of a page's tables of options.

    A code without ``=`` stands for another value of the option before it.
    """
    sets = []
    for row in re.findall(r'^\|.*?\| (`.*?`.*?) \|$', path.read_text(), re.MULTILINE):
        codes = re.findall(r'`([^`]+)`', row)
        if not re.match(r'[\w.]+=', codes[0]):
            continue
        for code in codes:
            sets.append(code if '=' in code else re.sub(r'=.*', f'={code}', sets[-1]))
    return [options for options in sets if not re.search(r'=(PATH|FILE|H,W|W,H|N)\b', options)]


def _all_options() -> list:
    """Every config with every set of options that a page shows for it."""
    shown = {}
    pages = [page for page in METHODS if page.parent.name != 'meter']  # see configs/test_meter.py
    for page in (ROOT / 'README.md', CONFIGS / 'README.md', *pages):
        name = str(page.relative_to(CONFIGS)) if page.is_relative_to(CONFIGS) else ''
        for command in _commands(page):
            if command[0] == 'train' and '--cfg-options' in command:
                options = command[command.index('--cfg-options') + 1 :]
                shown[command[1], ' '.join(options)] = page
        if name in TABLE_CONFIGS:
            for options in _option_cells(page):
                shown[TABLE_CONFIGS[name], options] = page
    return [
        pytest.param(
            config,
            options,
            id=f'{page.parent.name}: {config.split("_")[0]} {options}',
            marks=[pytest.mark.slow] if page.parent.name == 'timm' else [],
        )
        for (config, options), page in shown.items()
    ]


@pytest.mark.parametrize('page', PAGES, ids=_id)
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
        if not link.startswith('http'):
            assert (page.parent / link).exists(), link


def test_every_folder_of_configs_has_a_readme():
    folders = {p.parent for p in CONFIGS.glob('*/metafile.yml')}
    assert {page.parent for page in METHODS} == folders
    for page in METHODS:
        text = page.read_text()
        for heading in ('## How to use it', '## Models and results'):
            assert heading in text, page
        assert page.parent.name == 'baselines' or ('## Abstract' in text and '@inproc' in text)


@pytest.mark.parametrize('page', PAGES, ids=_id)
def test_commands_name_what_there_is(page):
    from mmvars.cli import COMMANDS
    from mmvars.layers import MIXERS
    from mmvars.networks import MODELS
    from mmvars.resources import config_path

    for command in _commands(page):
        assert command[0] in COMMANDS, command
        if command[0] in ('train', 'test', 'visualize', 'compare') and command[1] != 'CONFIG':
            if not command[1].startswith('-'):
                config_path(command[1])
        for flag, choices in (('--arch', MODELS), ('--mixer', MIXERS)):
            if flag in command:
                assert command[command.index(flag) + 1] in choices, command


def test_commands_of_the_thesis_parse():
    """Those of the table of figures have options that there are, and files that there are."""
    from importlib import import_module

    text = (ROOT / 'tools' / 'README.md').read_text()
    section = text.split('## Tables and figures of the thesis')[1].split('\n## ')[0]
    commands = [shlex.split(code)[1:] for code in re.findall(r'`(mmvars [^`]+)`', section)]
    assert len(commands) >= 20
    for name, *words in commands:
        import_module(f'mmvars.parsers.{name}').parse_args(words)
    for file in re.findall(r'configs/[\w./-]+\.yml', section):
        assert (ROOT / file).is_file(), file
    numbered = re.findall(r'(?<![\w.])(?:[12]|A)\.\d(?![\d%])', section)
    assert {*'1.3 1.4 1.5 1.6 2.2 2.4 2.5 2.7 2.8 2.9 A.1 A.2 A.4 A.5 A.6 A.7 A.8'.split()} <= {
        *numbered
    }


def test_readmes_show_options():
    assert len(_all_options()) >= 35


@pytest.mark.parametrize('config, options', _all_options())
def test_options_apply_and_the_model_builds(config, options):
    pytest.importorskip('mmseg')
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    import mmvars.models  # noqa: F401
    from mmvars.engine.options import apply_options, parse_cfg_options
    from mmvars.resources import config_path

    cfg = Config.fromfile(str(config_path(config)))
    words = parse_cfg_options(shlex.split(options))
    apply_options(cfg, words)
    init_default_scope(cfg.default_scope)
    is_other = not cfg.model.type.startswith('mmvars.')
    with torch.device('cpu' if is_other else 'meta'):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) > 0
    for key, value in words.items():  # the options are there, and nothing else was built
        if key.startswith('model.backbone.') and 'init_cfg' not in key:
            assert cfg.get(key.split('.')[0]).backbone[key.split('.')[2]] is not None
        elif key in ('arch', 'mixer'):
            assert cfg.model.backbone[key] == value


@pytest.mark.parametrize('page', [page for page in METHODS if page.parent.name != 'timm'], ids=_id)
def test_numbers_are_those_of_the_metafile(page):
    metafile = yaml.safe_load((page.parent / 'metafile.yml').read_text())
    models = {Path(model['Config']).name: model for model in metafile['Models']}
    listed = []
    for row in re.findall(r'^\|(.*)\| \[config\]\((.*?)\) \|$', page.read_text(), re.MULTILINE):
        model = models[row[1]]
        cells = [cell.strip() for cell in row[0].split('|')[1:]]
        numbers = [next(iter(result['Metrics'].values())) for result in model['Results']]
        if 'Parameters' in model['Metadata']:
            assert float(cells.pop(0)) == round(model['Metadata']['Parameters'] / 1e6, 1), row
        else:
            cells = cells[-len(numbers) :]
        assert [float(cell) for cell in cells if cell] == numbers, row
        listed.append(row[1])
    published = [name for name, model in models.items() if 'Results' in model]
    assert sorted(listed) == sorted(published), 'every published row, once'
    assert "authors' own" in page.read_text() or 'the authors quote' in page.read_text()


def test_the_front_page_is_short_and_has_one_list_of_what_is_missing():
    text = (ROOT / 'README.md').read_text()
    assert len(text.splitlines()) <= 150
    assert text.count('not there yet') == 1
    for link in ('arxiv.org/abs/2303.13043', 'arxiv.org/abs/2204.10962', 'EECS-2024-49'):
        assert link in text
    assert 'bash tools/quickstart.sh' in text
    assert 'bash tools/run_tests.sh' in text


def test_numbers_of_the_front_page_are_those_of_the_metafiles():
    numbers = {}
    for path in CONFIGS.glob('*/metafile.yml'):
        for model in yaml.safe_load(path.read_text())['Models']:
            for result in model.get('Results', [])[:1]:
                numbers[model['Name']] = next(iter(result['Metrics'].values()))
    text = (ROOT / 'README.md').read_text()
    cells = re.findall(r'\[([\d.]+)\]\(configs/(?:\w+/)?([\w-]+)\.py\)', text)
    assert len(cells) == 9
    for number, name in cells:
        data = name.rpartition('_')[2]
        matches = [
            v
            for n, v in numbers.items()
            if n == name
            or (name.startswith('absvit_') and n.startswith('absvit-b16') and f'_{data}-' in n)
        ]
        assert matches == [float(number)], name


def test_plain_pytorch_of_the_front_page_runs():
    (code,) = [block for block in _blocks(ROOT / 'README.md', 'python') if 'create_model' in block]
    code = code.replace('absvit_base', 'absvit_tiny')
    scope = dict(images=torch.rand(2, 3, 224, 224), vectors=torch.randn(2, 192))
    with torch.no_grad():
        exec(code, scope)
    assert scope['logits'].shape == (2, 1000)
    assert scope['weights'].shape == (2, 197, 1)
    assert len(scope['outs']) == 2
    assert 5 <= len(code.strip().splitlines()) <= 7


def test_configs_for_own_data_build(tmp_path):
    pytest.importorskip('mmseg')
    from mmengine.config import Config
    from mmengine.registry import MODELS, TRANSFORMS, init_default_scope

    import mmvars.models  # noqa: F401

    codes = [code for code in _blocks(CONFIGS / 'README.md', 'python') if 'val_dataloader' in code]
    assert len(codes) == 2
    for code in codes:
        assert len(code.splitlines()) <= 22
        file = tmp_path / 'mine.py'
        file.write_text(code)
        cfg = Config.fromfile(str(file))
        init_default_scope(cfg.default_scope)
        with torch.device('meta'):
            model = MODELS.build(cfg.model)
        head = model.decode_head if hasattr(model, 'decode_head') else model.head
        assert head.num_classes == 3
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            assert loader.dataset.data_root == cfg.data_root == 'mydata'
            for transform in loader.dataset.pipeline:
                assert TRANSFORMS.get(transform.type) or transform.get('_scope_'), transform
                assert transform.get('num_classes', 3) == 3
                assert not transform.get('reduce_zero_label')


def test_the_mixer_of_the_contributors_guide_works():
    from mmvars.layers import MIXERS
    from mmvars.networks import create_model

    scope: dict = {}
    try:
        for block in _blocks(ROOT / '.github' / 'CONTRIBUTING.md', 'python'):
            exec(block, scope)
        net = create_model('absvit_tiny', mixer='mean', depth=2, img_size=64)
        images = torch.rand(2, 3, 64, 64)
        out = net(images)
        loss = net.forward_head(out.second).sum() + net.forward_head(out.first).sum()
        loss.backward()
        assert all(p.grad is not None for p in net.trunk.blocks.parameters())
        assert not torch.equal(out.first.tokens, out.second.tokens)
    finally:
        MIXERS.pop('mean', None)
