"""The contract that all token mixers keep, their dictionaries, and the thesis's equations."""

import pytest
import torch
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import MIXERS, TokenGrid, build_mixer, mixer_options
from mmvars.layers.dictionaries import DenseDictionary, JoinedDictionary, SpectralDictionary
from mmvars.layers.performer import num_features, positive_features
from mmvars.layers.spectral import as_complex, from_spectrum, to_spectrum
from mmvars.layers.vars_static import new_filters, running_bound

GRID = TokenGrid(4, 6)
RECONSTRUCTING = ('vars_s', 'vars_d', 'vars_sd')
BUILDS = [(name, preset) for name in MIXERS for preset in ('release', 'thesis')
          if name in RECONSTRUCTING or preset == 'release']


def build(name, **options):
    if name == 'vars_s':  # the release's 3.5 codes nothing of tokens as small as those here
        options = dict(sparsity=.1) | options
    return build_mixer(name, 12, 2, GRID[:2], **options).eval()


@pytest.mark.parametrize(('name', 'preset'), BUILDS)
def test_shapes_and_saving(name, preset):
    mixer, twin = build(name, preset=preset), build(name, preset=preset)
    x = torch.randn(2, 24, 12)
    assert mixer(x, GRID).shape == x.shape
    twin.load_state_dict(mixer.state_dict(), strict=True)
    assert torch.equal(twin(x, GRID), mixer(x, GRID))
    assert mixer.train() is mixer


@pytest.mark.parametrize(('name', 'preset'), BUILDS)
def test_a_top_down_signal_is_added_to_the_value_alone(name, preset):
    mixer, x, signal = build(name, preset=preset), torch.randn(1, 24, 12), torch.randn(1, 24, 12)
    if not mixer.takes_top_down:
        with pytest.raises(InputError, match='no value path'):
            mixer(x, GRID, signal)
        return
    assert not torch.allclose(mixer(x, GRID, signal), mixer(x, GRID))
    if name not in RECONSTRUCTING:
        return
    plain, steered = mixer.trace(x, GRID), mixer.trace(x, GRID, signal)
    if plain.atoms is not None:
        assert torch.equal(plain.atoms, steered.atoms)
    projected = mixer_options(name, preset)['value'] == 'projected'
    value = (mixer.value if name == 'vars_s' else mixer.qv) if projected else torch.nn.Identity()
    torch.testing.assert_close(steered.signal - plain.signal, value(signal)[..., -12:])


@pytest.mark.parametrize(('name', 'preset'), [b for b in BUILDS if b[0] in RECONSTRUCTING])
def test_without_steps_what_trains_is_what_a_loss_reaches(name, preset):
    mixer = build(name, preset=preset, num_steps=0)
    mixer(torch.randn(2, 24, 12), GRID).square().sum().backward()
    assert {n for n, p in mixer.named_parameters() if p.grad is not None} == {
        n for n, p in mixer.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('name', RECONSTRUCTING)
@pytest.mark.parametrize('preset', ['release', 'thesis'])
def test_the_trace_tells_what_the_forward_does(name, preset):
    mixer, x = build(name, preset=preset), torch.randn(2, 24, 12)
    trace = mixer.trace(x, GRID)
    assert len(trace.codes) == len(trace.reconstructions) == mixer.num_steps + 1
    out = trace.reconstructions[-1]
    if name == 'vars_s':
        if mixer.output_filter is not None:
            filtered = torch.fft.rfft2(GRID.to_map(out)) * as_complex(mixer.output_filter)
            out = from_spectrum(filtered, (4, 6)).flatten(2).transpose(1, 2)
        out = mixer.norm(out)
    elif preset == 'release':
        heads = trace.atoms @ trace.codes[-1]
        torch.testing.assert_close(out, heads.transpose(1, 2).flatten(2))
    if mixer.residual:
        out = out + trace.signal
    torch.testing.assert_close(mixer.proj(out), mixer(x, GRID))


@pytest.mark.parametrize('name', ['vars_d', 'vars_sd'])
def test_equation_1_12_written_out(name):
    """The preset 'thesis' against the equations as printed, step by step."""
    options = dict(static_atoms='free') if name == 'vars_sd' else {}
    mixer = build(name, preset='thesis', **options)
    with torch.no_grad():
        mixer.gram_modulation.add_(.1 * torch.randn_like(mixer.gram_modulation))
        mixer.sparsity_scale.fill_(.8)
        mixer.step_scale.fill_(1.7)
    x = torch.randn(1, 24, 12)
    query = mixer.qv(x)[0]
    outputs = []
    for head in range(2):
        columns = slice(6 * head, 6 * head + 6)
        q = query[:, columns] / 6**.25
        omega = mixer.random_features[head]
        atoms = torch.exp(q @ omega - q.square().sum(1, keepdim=True) / 2) / omega.shape[1]**.5
        if name == 'vars_sd':
            atoms = torch.cat([atoms, mixer.static_atoms[0, head]], dim=1)
        signal, gamma = x[0, :, columns], mixer.gram_modulation
        bound = torch.linalg.svdvals(atoms.T @ atoms)[0]
        code = atoms.T @ signal
        for _ in range(3):
            moved = code - (gamma.T @ atoms.T @ atoms @ gamma @ code
                            - atoms.T @ signal) / (1.7 * bound)
            code = moved.sign() * F.relu(moved.abs() - .8 * .6 / (1.7 * bound))
        outputs.append(atoms @ code + signal)
    expected = mixer.proj(torch.cat(outputs, dim=1))
    torch.testing.assert_close(mixer(x, GRID)[0], expected, rtol=1e-4, atol=1e-5)


def test_performer_is_the_explicit_kernel_matrix():
    mixer, x = build('performer'), torch.randn(2, 24, 12)
    q, k, v = (part.unflatten(2, (2, 6)).transpose(1, 2) for part in mixer.qkv(x).chunk(3, -1))
    kernel = positive_features(q, mixer.random_features) @ positive_features(
        k, mixer.random_features).transpose(-2, -1)
    out = F.normalize(kernel, p=1, dim=-1) @ v
    torch.testing.assert_close(mixer.proj(out.transpose(1, 2).flatten(2)), mixer(x, GRID))


class TestDictionaries:

    @pytest.fixture(params=['dense', 'scaled', 'spectral', 'joined'])
    def case(self, request):
        """A dictionary, a signal and a code for it."""
        atoms = torch.randn(2, 2, 26, 5, dtype=torch.float64)
        filters = to_spectrum(torch.randn(8, 3, 4, 6, dtype=torch.float64))
        dense = DenseDictionary(atoms, normalise=request.param == 'scaled')
        spectral = SpectralDictionary(filters, (4, 6))
        heads = torch.randn(2, 2, 26, 4, dtype=torch.float64)
        if request.param == 'spectral':
            signal = torch.randn(2, 8, 4, 6, dtype=torch.float64)
            return spectral, signal, spectral.bound()
        if request.param == 'joined':  # two prefix tokens, of which the filters know nothing
            joined = JoinedDictionary(dense, spectral, (4, 6))
            return joined, heads, joined.bound('spectral')
        return dense, heads, dense.bound('spectral')

    def test_encoding_is_the_transpose_of_decoding(self, case):
        dictionary, signal, _ = case
        code = torch.randn_like(dictionary.encode(signal))
        torch.testing.assert_close((dictionary.decode(code) * signal).sum(),
                                   (code * dictionary.encode(signal)).sum())

    def test_gram_is_encoding_after_decoding(self, case):
        dictionary, signal, _ = case
        code = torch.randn_like(dictionary.encode(signal))
        torch.testing.assert_close(dictionary.gram(None, False)(code),
                                   dictionary.encode(dictionary.decode(code)))

    def test_hermitian_filters_make_the_gram_that_of_the_dictionary(self):
        exact, released = build('vars_s', hermitian_filters=True), build('vars_s')
        released.load_state_dict(exact.state_dict())
        x = torch.randn(1, 24, 12)
        for mixer, agrees in ((exact, True), (released, False)):
            signal, dictionary, _ = mixer._dictionary(mixer._inputs(x, None), GRID)
            code = dictionary.encode(signal)
            product = dictionary.encode(dictionary.decode(code))
            assert torch.allclose(dictionary.gram(None, False)(code), product, atol=1e-5) == agrees
        torch.testing.assert_close(exact.trace(x, GRID).codes[0], released.trace(x, GRID).codes[0])

    def test_the_bound_holds(self, case):
        dictionary, signal, bound = case
        code, gram = torch.randn_like(dictionary.encode(signal)), dictionary.gram(None, False)
        for _ in range(30):
            code = gram(code)
            code = code / torch.linalg.vector_norm(code, dim=-1, keepdim=True).clamp_min(1e-12)
        rayleigh = ((code * gram(code)).sum() / code.square().sum())
        assert rayleigh <= bound.max() * (1 + 1e-9)

    def test_atoms_have_unit_length(self, case):
        dictionary, _, _ = case
        if isinstance(dictionary, DenseDictionary) and dictionary._scale is not None:
            torch.testing.assert_close(dictionary.atoms.norm(dim=2),
                                       torch.ones(2, 2, 5, dtype=torch.float64))

    def test_filters_convolve_circularly(self):
        filters = torch.randn(1, 1, 4, 6)
        spectral = SpectralDictionary(torch.fft.rfft2(filters), (4, 6))
        signal = torch.randn(1, 1, 4, 6)
        expected = sum(filters[0, 0, i, j] * signal.roll((i, j), dims=(2, 3))
                       for i in range(4) for j in range(6))
        torch.testing.assert_close(spectral.encode(signal)[:, :, 0], expected)


def test_running_bound_is_the_largest_singular_value_of_the_real_part():
    filters = new_filters(3, 5, (4, 6))
    spectrum = as_complex(filters).permute(0, 2, 3, 1)
    real = (spectrum[..., :, None] * spectrum[..., None, :].conj()).real
    expected = torch.linalg.svdvals(real)[..., 0].amax(dim=(1, 2))
    torch.testing.assert_close(running_bound(filters), expected)


@pytest.mark.parametrize(('name', 'options', 'told'), [
    ('vars_d', dict(sparsity=-1), 'sparsity'), ('vars_d', dict(sparsity=float('nan')), 'sparsity'),
    ('vars_s', dict(num_steps=-1), 'num_steps'), ('vars_sd', dict(num_steps=1.5), 'num_steps'),
    ('vars_d', dict(feature_ratio=.1), 'at least one feature'),
    ('performer', dict(feature_ratio=-2), 'feature_ratio'),
    ('vars_d', dict(shrinkage='relu'), 'soft, gelu'), ('vars_d', dict(start='x'), 'projection'),
    ('vars_d', dict(step_bound='running'), 'spectral'), ('vars_s', dict(step_bound='x'), 'running'),
    ('vars_s', dict(atoms_per_channel=0), 'atoms_per_channel'), ('vars_s', dict(norm='x'), 'batch'),
    ('vars_sd', dict(static_atoms='x'), 'convolution'), ('vars_d', dict(value='x'), 'projected'),
    ('vars_d', dict(lam=.3), 'takes no option lam'), ('vars', {}, 'vars_sd'),
    ('vars_d', dict(preset='paper'), 'release, thesis'), ('vars_s', dict(num_prefix=1), 'class'),
    ('global_filter', dict(num_prefix=1), 'class'), ('masked_attention', dict(num_prefix=1), 'RVT'),
    ('vars_d', dict(step_scaling='x'), 'multiply'),
    ('vars_sd', dict(preset='thesis', scale_aware_sparsity=True), 'filters keep their size'),
    ('vars_d', dict(residual='no'), "residual must be True or False, got 'no'"),
    ('vars_s', dict(output_filter=0), 'output_filter must be True or False'),
])
def test_bad_options_are_named(name, options, told):
    with pytest.raises(InputError, match=told):
        build(name, **options)


def test_an_option_of_a_parameter_s_name_is_no_option():
    with pytest.raises(InputError, match='takes no option name'):
        mixer_options('vars_d', **dict(name=3))


@pytest.mark.parametrize('head_dim', [1, 3, 7, 12, 32, 1000])
def test_the_least_feature_ratio_that_is_told_makes_a_feature(head_dim):
    with pytest.raises(InputError, match='use at least') as told:
        num_features(1e-6, head_dim)
    assert num_features(float(str(told.value).rsplit(' ', 1)[1]), head_dim) == 1


@pytest.mark.parametrize('name', [n for n in MIXERS if n not in ('vars_s', 'global_filter')])
def test_heads_must_divide_the_width(name):
    with pytest.raises(InputError, match='divisible by num_heads'):
        build_mixer(name, 12, 5, (2, 2))


def test_options_are_complete_and_given_ones_win():
    options = mixer_options('vars_sd', 'thesis', num_steps=7)
    assert options['num_steps'] == 7 and options['sparsity'] == .6
    assert options['static_atoms'] == 'convolution' and options['atoms_per_channel'] == 3
    released = mixer_options('vars_sd')
    assert released['num_steps'] == 5 and released['static_atoms'] == 'free'
    assert 'atoms_per_channel' not in released
    assert mixer_options('vars_s')['atoms_per_channel'] == 5
    assert mixer_options('vars_s', **mixer_options('vars_s', 'thesis')) == mixer_options(
        'vars_s', 'thesis')
