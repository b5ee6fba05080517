"""`mmvars compare` with a training that takes no time: what it starts, keeps, refuses, reports."""

import fcntl
import json
import os
import signal
import statistics
from pathlib import Path

import compare_runs
import pytest
from compare_runs import mean_and_spread
from mmengine.config import Config

from mmvars.errors import InputError

CONFIG = """
model = dict(type='mmvars.ViT', arch=dict(embed_dims=24, num_layers=1, num_heads=1), img_size=32,
             drop_path_rate=0.)
train_dataloader = dict(batch_size=2)
val_dataloader = dict(batch_size=1)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=4)
val_cfg = dict(type='ValLoop')
"""

# A training whose last score is 10 + 2 x seed + 100 x drop path, so that every mean is known. What
# else it does, a file says that is named after its variant and seed, and it does so once.
TRAINING = """
import json, os, pathlib, signal, sys, time
cfg = {}
exec(pathlib.Path(sys.argv[1]).read_text(), cfg)
folder = pathlib.Path(sys.argv[3])
seed = cfg['randomness']['seed']
name = f'{folder.parent.name}-{seed}'
here = pathlib.Path(__file__).parent
resumes = ' resumes' if sys.argv[4:] == ['--resume'] else ''
with open(here / 'calls', 'a') as calls:
    calls.write(f'{name}{resumes}\\n')
order = here / name
if order.exists():
    word, who, number = order.read_text().split()
    order.unlink()
    number = int(number)
    if word == 'stop':
        def save(signum, frame):
            (folder / 'last_checkpoint').write_text('iter_3.pth')
            sys.exit(128 + signum)
        signal.signal(number, save)
        os.kill(os.getppid() if who == 'parent' else os.getpid(), number)
        time.sleep(20)
        sys.exit(77)
    if word == 'fail':
        print('loading')
        print('mmvars: the disk is full')
        sys.exit(number)
    if word == 'kill':
        os.kill(os.getpid(), number)
    if word == 'late':
        signal.signal(number, lambda *args: None)
        os.kill(os.getppid(), number)
        time.sleep(.5)
score = 10 + 2 * seed + 100 * cfg['model']['drop_path_rate']
logs = folder / ('2' if resumes else '1') / 'vis_data'
logs.mkdir(parents=True)
rows = [dict(lr=.1, loss=2., step=4), dict(score=1., time=.1, step=4),
        dict(lr=.1, loss=1., step=8), dict(score=score, other=3., each=[3.], time=.1, step=8)]
(folder / 'best_score_iter_4.pth').write_text(str(score))
(logs / 'scalars.json').write_text(''.join(json.dumps(row) + '\\n' for row in rows))
"""

# A test whose score is that of the training and 100, of the checkpoint that validated best.
TEST = """
import json, pathlib, sys
config, checkpoint, _, folder, _, out, *_ = sys.argv[1:]
with open(pathlib.Path(__file__).parent / 'calls', 'a') as calls:
    calls.write('test\\n')
score = float(pathlib.Path(checkpoint).read_text()) + 100
pathlib.Path(folder).mkdir()
pathlib.Path(out).write_text(json.dumps(dict(score=score)))
"""

VARIANTS = ('--variant', 'low', '--variant', 'high: model.drop_path_rate=0.1')


class Bench:
    """The command with the training above in place of the real one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / 'work'
        (root / 'tools').mkdir()
        (root / 'tools' / 'train.py').write_text(TRAINING)
        (root / 'tools' / 'test.py').write_text(TEST)
        (root / 'config.py').write_text(CONFIG)

    def run(self, *extra: str, variants=VARIANTS, seeds=('0', '1', '2')) -> int:
        return compare_runs.main(
            [
                str(self.root / 'config.py'),
                *variants,
                '--seeds',
                *seeds,
                '--work-dir',
                str(self.work),
                '--metric',
                'score',
                *extra,
            ]
        )

    def order(self, run: str, text: str) -> None:
        (self.root / 'tools' / run).write_text(text)

    def calls(self) -> list[str]:
        """The trainings since the last call."""
        file = self.root / 'tools' / 'calls'
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def table(self) -> dict:
        return json.loads((self.work / 'comparison.json').read_text())

    def files(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in self.work.rglob('*') if p.is_file()}


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setattr(compare_runs, 'resource_root', lambda: tmp_path)
    monkeypatch.setattr(compare_runs, 'check_data_roots', lambda cfg: None)
    return Bench(tmp_path)


def test_mean_and_sample_standard_deviation() -> None:
    assert mean_and_spread([1.0, 2.0, 6.0]) == pytest.approx((3.0, 7.0**0.5))
    assert mean_and_spread([4.0]) == (4.0, None)
    assert mean_and_spread([]) == mean_and_spread([1.0, float('nan')]) == (None, None)


def test_a_complete_table(bench, capsys) -> None:
    assert bench.run('--cfg-options', 'train_dataloader.batch_size=4') == 0
    # Seed by seed, so that a table that is stopped early is balanced.
    assert bench.calls() == ['low-0', 'high-0', 'low-1', 'high-1', 'low-2', 'high-2']
    table = bench.table()
    assert (table['measured'], table['complete'], table['metric']) == (True, True, 'score')
    assert (table['config'], table['max_iters'], table['batch_size']) == ('config.py', 8, 4)
    assert table['cfg_options'] == {'train_dataloader.batch_size': 4}
    assert set(table['environment']) == {'mmvars', 'torch', 'device'}
    low, high = table['variants']
    assert (low['name'], low['mean'], low['standard_deviation'], low['n']) == ('low', 12.0, 2.0, 3)
    assert (high['mean'], high['standard_deviation']) == pytest.approx((22.0, 2.0))
    assert high['options'] == {'model.drop_path_rate': 0.1}
    assert [(run['seed'], run['value']) for run in high['runs']] == [
        (0, 20.0),
        (1, 22.0),
        (2, 24.0),
    ]
    seconds = [run['seconds'] for run in low['runs']]
    assert low['seconds_per_run'] == pytest.approx(statistics.fmean(seconds))
    assert min(seconds) > 0
    text = (bench.work / 'comparison.md').read_text()
    assert '| low | 12.00 ± 2.00 | 3 | 10.00, 12.00, 14.00 |' in text
    assert 'as measured' in text and 'Not complete' not in text and 'interrupted' not in text
    assert f'- torch: {table["environment"]["torch"]}' in text
    assert '- options of high: `model.drop_path_rate=0.1`' in text
    assert text in capsys.readouterr().out


COLUMNS = """
variants: {low: {}, high: {model.drop_path_rate: 0.1}}
columns: {narrow: {train_dataloader.batch_size: 3}, wide: {train_dataloader.batch_size: 4}}
published: {theirs: {narrow: 77.5}}
cfg_options: {+default_hooks.checkpoint.save_best: score, +test_cfg: {type: TestLoop}}
"""


def test_every_variant_in_every_column_by_a_test(bench, capsys) -> None:
    """Such as models x target domains; the score of a wide column is made to be 6 higher."""
    training = bench.root / 'tools' / 'train.py'
    training.write_text(TRAINING.replace('score = 10', "score = 10 + 6 * ('wide' in str(folder))"))
    (bench.root / 'v.yml').write_text(COLUMNS)
    arguments = dict(variants=('--variants', str(bench.root / 'v.yml')), seeds=('0', '1'))
    assert bench.run(**arguments) == 0
    assert bench.calls() == [
        f'{column}-{seed}' for seed in '01' for column in ('narrow', 'wide') * 2
    ]
    table = bench.table()
    assert table['of'] == 'validation set after training'
    assert table['rows'][0]['average'] == dict(n=2, mean=14.0, standard_deviation=2**0.5)
    assert bench.run('--test-best', **arguments) == 0
    assert bench.calls() == ['test'] * 8  # what is trained stays
    low, high = bench.table()['rows']
    assert (low['name'], high['name']) == ('low', 'high')
    assert [cell['mean'] for cell in (*low['cells'], low['average'])] == [111, 117, 114]
    assert [cell['mean'] for cell in (*high['cells'], high['average'])] == [121, 127, 124]
    text = (bench.work / 'comparison.md').read_text()
    assert text.startswith(
        '# score on the test data, by the checkpoint that validates best, as measured'
    )
    assert '| score: mean ± sd | narrow | wide | average |\n| --- | --- | --- | --- |\n' in text
    assert '| low | 111.00 ± 1.41 | 117.00 ± 1.41 | 114.00 ± 1.41 |' in text
    assert '| *published: theirs* | 77.50 | - | - |' in text
    assert '| low/wide | 117.00 ± 1.41 | 2 | 116.00, 118.00 |' in text
    assert bench.run('--test-best', **arguments) == 0
    assert bench.calls() == []


def test_a_stopped_grid_has_no_average_yet(bench) -> None:
    (bench.root / 'v.yml').write_text(COLUMNS)
    bench.order('wide-1', f'stop parent {int(signal.SIGTERM)}')
    assert bench.run(variants=('--variants', str(bench.root / 'v.yml')), seeds=('1',)) == 143
    text = (bench.work / 'comparison.md').read_text()
    assert '| low | 12.00 ± - | - ± - | - ± - |' in text


@pytest.mark.parametrize(
    'old, new, said',
    [
        (
            '{theirs: {narrow',
            '{theirs: {tall',
            "'theirs' must be numbers for the columns narrow, w",
        ),
        (
            'model.drop_path_rate',
            'train_dataloader',
            "'narrow' and variant 'high' both set train_d",
        ),
        ('{narrow: {train', '{a/b: {train', "column 'a/b': a name starts with"),
        ('save_best: score', 'interval: 1', '--test-best needs a config .*save_best=auto'),
        ('+test_cfg: {type: TestLoop}', 'log_level: INFO', '--test-best needs a config that tests'),
    ],
)
def test_bad_columns_are_said_before_anything_is_done(old, new, said, bench) -> None:
    assert old in COLUMNS
    (bench.root / 'v.yml').write_text(COLUMNS.replace(old, new))
    with pytest.raises(InputError, match=said):
        bench.run('--test-best', variants=('--variants', str(bench.root / 'v.yml')))
    assert not bench.calls()


def test_finished_runs_are_kept_and_runs_may_be_added(bench) -> None:
    assert bench.run(seeds=('0',), variants=VARIANTS[:2]) == 0
    assert '| low | 10.00 ± - | 1 |' in (bench.work / 'comparison.md').read_text()
    assert bench.calls() == ['low-0']
    assert bench.run(seeds=('1', '0')) == 0
    assert bench.calls() == ['low-1', 'high-1', 'high-0']
    assert [row['mean'] for row in bench.table()['variants']] == pytest.approx([11.0, 21.0])
    before = bench.files()
    assert bench.run(seeds=('1', '0')) == 0
    assert bench.calls() == []
    assert bench.files() == before


@pytest.mark.parametrize(
    'who, signum',
    [('parent', signal.SIGINT), ('parent', signal.SIGTERM), ('child', signal.SIGTERM)],
)
def test_a_stopped_table_goes_on(who, signum, bench, capsys) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    bench.order('high-0', f'stop {who} {int(signum)}')
    assert bench.run(seeds=('0', '1')) == 128 + signum
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert bench.calls() == ['low-0', 'high-0']
    assert 'stopped; the same command line goes on' in capsys.readouterr().out
    assert not bench.table()['complete']
    assert '**Not complete: 1 of 4 runs.**' in (bench.work / 'comparison.md').read_text()
    assert bench.run(seeds=('0', '1')) == 0
    assert bench.calls() == ['high-0 resumes', 'low-1', 'high-1']
    table = bench.table()
    assert (table['complete'], table['resumed']) == (True, 1)
    assert table['variants'][1]['mean'] == pytest.approx(21.0)
    assert 'interrupted and resumed' in (bench.work / 'comparison.md').read_text()


def test_a_signal_in_the_last_moment_keeps_the_run_and_stops(bench) -> None:
    bench.order('low-0', f'late parent {int(signal.SIGTERM)}')
    assert bench.run() == 143
    assert bench.calls() == ['low-0']
    assert bench.run() == 0
    assert bench.calls()[0] == 'high-0'


@pytest.mark.parametrize(
    'order, said',
    [
        ('fail - 2', r'high.*seed 0.*exit status 2.*the disk is full\n.*train.log.*tries it again'),
        ('fail - 1', 'exit status 1'),
        ('kill - 9', 'killed by SIGKILL, as when memory runs out'),
    ],
)
def test_a_training_that_fails_is_tried_again(order, said, bench) -> None:
    bench.order('high-0', order)
    with pytest.raises(InputError, match=said):
        bench.run(seeds=('0',))
    assert bench.calls() == ['low-0', 'high-0']
    assert bench.run(seeds=('0',)) == 0
    assert bench.calls() == ['high-0']  # from the start: there was no checkpoint
    assert bench.table()['resumed'] == 0


def test_results_are_never_mixed(bench, monkeypatch) -> None:
    bench.order('high-0', f'stop parent {int(signal.SIGTERM)}')
    bench.run()
    before = bench.files()
    with pytest.raises(InputError, match='train_dataloader.batch_size 2 there, 5 now.*not mixed'):
        bench.run('--cfg-options', 'train_dataloader.batch_size=5')
    with pytest.raises(InputError, match=r'high.seed_0 .* model.drop_path_rate 0.1 there, 0.2 now'):
        bench.run(variants=('--variant', 'low', '--variant', 'high: model.drop_path_rate=0.2'))
    (bench.root / 'config.py').write_text(CONFIG.replace('max_iters=8', 'max_iters=9'))
    with pytest.raises(InputError, match='max_iters 8 there, 9 now'):
        bench.run()
    (bench.root / 'config.py').write_text(CONFIG)
    environment = compare_runs.environment() | dict(torch='9')
    monkeypatch.setattr(compare_runs, 'environment', lambda: environment)
    with pytest.raises(InputError, match='torch .* there, 9 now'):
        bench.run()
    assert bench.files() == before


def test_a_folder_with_something_else_is_left_alone(bench) -> None:
    other = bench.work / 'low' / 'seed_1' / 'thesis.txt'
    other.parent.mkdir(parents=True)
    other.write_text('mine')
    with pytest.raises(InputError, match='low.seed_1 holds something else.*another --work-dir'):
        bench.run()
    assert [Path(name).name for name in bench.files()] == ['thesis.txt']


def test_only_one_at_a_time(bench) -> None:
    bench.work.mkdir()
    with open(bench.work / '.compare.lock', 'w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match='at work there'):
            bench.run()
    assert bench.calls() == []
    assert bench.run(seeds=('0',)) == 0


def test_an_unknown_metric_lists_those_there_are(bench) -> None:
    with pytest.raises(InputError, match="'mIoU' is not among .*: score, other$"):
        bench.run('--metric', 'mIoU', seeds=('0',))
    assert bench.calls() == ['low-0']
    with pytest.raises(InputError, match="'each' is not among"):  # a list has no mean
        bench.run('--metric', 'each', seeds=('0',))
    assert bench.run(seeds=('0',)) == 0  # the training was not lost
    assert bench.calls() == ['high-0']


@pytest.mark.parametrize(
    'extra, said',
    [
        (['--variant', 'low'], "'low' is given twice"),
        (['--variant', 'a/b: model.img_size=8'], "'a/b'.*becomes a folder"),
        (['--variant', ': model.img_size=8'], "''.*becomes a folder"),
        (['--variant', 'x: img_size'], "--variant 'x: img_size': 'img_size' is not .* KEY=VALUE"),
        (['--variant', 'x: model.img_size=[8,9'], 'brackets'),
        (['--variant', 'x: randomness.seed=3'], 'randomness.seed is not for options here'),
        (['--variant', 'x: trian_cfg.max_iters=3'], "variant 'x': .*did you mean train_cfg"),
        (['--variant', 'x: model.color=3'], "variant 'x': .*color"),
        (
            ['--variant', 'x: model.img_size=8', '--cfg-options', 'model.img_size=9'],
            "variant 'x' and --cfg-options both set model.img_size",
        ),
        (['--variants', 'nowhere.yml'], 'nowhere.yml'),
        (['--cfg-options', 'work_dir=there'], 'options of all runs: work_dir'),
        (['--cfg-options', 'val_cfg=None'], 'must train and validate'),
        (['--seeds', '1', '1'], '--seeds must be different'),
        (['--seeds', '-1'], '--seeds must be different whole numbers from 0'),
    ],
)
def test_bad_input_is_said_before_anything_is_done(extra, said, bench) -> None:
    with pytest.raises(InputError, match=said):
        bench.run(*extra)
    assert not bench.work.exists()


@pytest.mark.parametrize(
    'config, said',
    [
        (
            CONFIG + "visualizer = dict(vis_backends=[dict(type='TensorboardVisBackend')])",
            'no LocalVisBackend',
        ),
        (CONFIG.replace('val_dataloader', 'test_dataloader'), 'must train and validate'),
    ],
)
def test_configs_without_a_result_are_refused(config, said, bench) -> None:
    (bench.root / 'config.py').write_text(config)
    with pytest.raises(InputError, match=said):
        bench.run()
    assert not bench.work.exists()


def test_no_variants(bench) -> None:
    with pytest.raises(InputError, match='no variants to compare'):
        bench.run(variants=())


def test_nothing_of_this_process_is_left_to_the_terminal(bench, monkeypatch) -> None:
    """Ctrl-C in a terminal goes to a whole process group: the training must get it once."""
    options = {}
    start = compare_runs.subprocess.Popen

    def popen(*args, **kwargs):
        options.update(kwargs)
        return start(*args, **kwargs)

    monkeypatch.setattr(compare_runs.subprocess, 'Popen', popen)
    bench.run(seeds=('0',), variants=VARIANTS[:2])
    assert options['start_new_session'] and options['stdin'] == compare_runs.subprocess.DEVNULL
    assert len(options['pass_fds']) == 1
    assert os.environ.get('PYTHONPATH') != options['env']['PYTHONPATH']


@pytest.mark.parametrize(
    'name, text',
    [
        ('v.yml', 'variants: {a: {}, b: {x.y: [1, 2]}}\ncfg_options: {size: {w: 3}, z: 1}'),
        (
            'v.py',
            "variants = {'a': {}, 'b': {'x.y': [1, 2]}}\ncfg_options = dict(size=dict(w=3), z=1)",
        ),
    ],
)
def test_files_of_variants(name, text, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    common, table = compare_runs.read_variants(
        str(tmp_path / name), ["c: k=1,2 m='p q' n=true"], dict(z=2)
    )
    assert common == {'size': {'w': 3}, 'z': 2}  # the command line wins
    assert table == {'a': {}, 'b': {'x.y': [1, 2]}, 'c': {'k': [1, 2], 'm': 'pq', 'n': True}}


@pytest.mark.parametrize(
    'text, said',
    [
        ('variants: [1', 'cannot be read'),
        ('x: 1', 'must hold variants'),
        ('variants: {a: {}}\nextra: 1', 'holds extra'),
        ('variants: {a: 3}', "'a' must be a dict"),
        ('variants: {1: {}}', 'variant 1: a name'),
    ],
)
def test_bad_files_of_variants(text, said, tmp_path) -> None:
    (tmp_path / 'v.yml').write_text(text)
    with pytest.raises(InputError, match=said):
        compare_runs.read_variants(str(tmp_path / 'v.yml'), [], {})


def test_the_shipped_designs_build(repo, tmp_path) -> None:
    """Tables 2.3, 2.5 and 2.6, on the trunk that is small enough to build here."""
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    arguments = [
        'vit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256',
        '--seeds',
        '0',
        '--work-dir',
        str(tmp_path),
        '--variants',
    ]
    folder = repo / 'configs' / 'absvit'
    args = compare_runs.read_arguments([*arguments, str(folder / 'top-down-designs_mini.yml')])
    runs = compare_runs.plan_runs(args)
    compare_runs.check_variants(runs)
    built = {run.variant: run.cfg.model.backbone for run in runs}
    assert list(built) == [
        'plain',
        'feedback',
        'perceiver_io',
        'mask_attention',
        'absvit_without_reconstruction_loss',
        'absvit',
        'absvit_qkv_without_reconstruction_loss',
        'absvit_qkv',
    ]
    assert built.pop('plain').type == 'mmvars.ViT'
    assert {backbone.type for backbone in built.values()} == {'mmvars.AbSViT'}
    assert {
        name: (b.get('design', 'absvit'), b.get('reconstruction_loss_weight', 0))
        for name, b in built.items()
        if name.startswith('absvit')
    } == {
        'absvit_without_reconstruction_loss': ('absvit', 0),
        'absvit': ('absvit', 0.1),
        'absvit_qkv_without_reconstruction_loss': ('absvit_qkv', 0),
        'absvit_qkv': ('absvit_qkv', 0.1),
    }
    for name in ('feedback', 'perceiver_io', 'mask_attention'):
        assert built[name].design == name
    # The full-size table differs in the options of all runs alone.
    whole = compare_runs.read_arguments([*arguments, str(folder / 'top-down-designs.yml')])
    assert (whole.table, whole.common) == (args.table, {})


def test_the_comparison_trains_qkv_as_its_config_does(repo) -> None:
    folder = repo / 'configs' / 'absvit'
    config = 'vit-tiny-p16-absvit-qkv_8xb128-coslr-300e_in1k.py'
    backbone = Config.fromfile(folder / config).model.backbone
    _, table = compare_runs.read_variants(str(folder / 'top-down-designs.yml'), [], {})
    options = {key.rpartition('.')[2]: value for key, value in table['absvit_qkv'].items()}
    assert options == {key: backbone[key] for key in options}
    assert options['reconstruction_loss_weight'] == 0.1
