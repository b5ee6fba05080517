"""Files of timm, and of the authors of its networks, for a trunk of timm."""

from collections.abc import Mapping
from typing import Any

from mmvars.checkpoints.adapt import join_projections
from mmvars.checkpoints.formats import MMVARS, RENAMED_FOR_TIMM
from mmvars.checkpoints.io import tensor_fault
from mmvars.checkpoints.naming import Source, find_network, name_tensors
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.checkpoints.weights import drop, with_prefix
from mmvars.errors import InputError

__all__ = ['HEADS', 'TIMM_REMEDY', 'published_file', 'timm_sources']

_MODEL = 'trunk.model.'
HEADS = (f'{_MODEL}head.', f'{_MODEL}head_dist.')
"""What the names of a classifier of timm begin with."""

TIMM_REMEDY = (
    'The network was left as it is. The file must be of the network that arch names; timm adapts '
    'names, positions, sizes of patches and channels of images, and nothing else.'
)


def timm_sources(
    trunk: Any, state_dict: Mapping[str, Any], report: ConversionReport
) -> dict[str, Source]:
    """The tensors of a file by network name, for a trunk of timm.

    Files are those of mmvars; of timm, DINO, MAE, CLIP and what else timm's own
    ``checkpoint_filter_fn`` of the network reads; and of Hugging Face, MMPretrain and
    MMSegmentation. That function also resamples what is for other patches or positions.

    Args:
        trunk: A :class:`~mmvars.networks.timm_trunk.TimmTrunk`.
        state_dict: The weights of the file.
        report: Gets an entry for each key that becomes no tensor of the network.

    Raises:
        InputError: If the file holds several networks or unusable tensors, or timm's function
            fails on it.
    """
    prefix, names = find_network(state_dict, report)
    if names in RENAMED_FOR_TIMM:
        _, named, _ = name_tensors(state_dict, report, pass_through=False)
        named = join_projections(named, report)
    else:
        inside = with_prefix(state_dict, prefix, report)
        named = {
            f'trunk.{key}': Source(prefix + key, value, getattr(value, 'shape', None))
            for key, value in inside.items()
        }
    beside = {f'trunk.{name}' for name in trunk.state_dict() if not name.startswith('model.')}
    others = {
        name: each
        for name, each in named.items()
        if name in beside or not name.startswith('trunk.')
    }
    published = {
        name.removeprefix('trunk.').removeprefix('model.'): each
        for name, each in named.items()
        if name not in others
    }
    published = _first_blocks(trunk, published, report)
    for each in published.values():
        if fault := tensor_fault(each.value):
            report.add(Status.BROKEN, each.key, shape=each.shape, note=fault)
    report.raise_problems(TIMM_REMEDY)
    shapes = {name: value.shape for name, value in trunk.model.state_dict().items()}
    if names is not MMVARS or any(
        each.value.shape != shapes.get(name, each.value.shape) for name, each in published.items()
    ):
        published = _first_blocks(trunk, _adapted(trunk, published, report), report)
    sources = {_MODEL + name: each for name, each in published.items()}
    surplus = {
        'classifier of other classes than the network has': [
            name
            for name in sources
            if name.startswith(HEADS)
            and sources[name].value.shape != shapes.get(name.removeprefix(_MODEL))
        ],
        'attention pooling, which the network does not have': [
            name
            for name in sources
            if name.startswith(f'{_MODEL}attn_pool.')
            and getattr(trunk.model, 'attn_pool', None) is None
        ],
    }
    for reason, surplus_names in surplus.items():
        sources = drop(sources, report, reason, surplus_names)
    return sources | others


def _first_blocks(
    trunk: Any, published: Mapping[str, Source], report: ConversionReport
) -> dict[str, Source]:
    """``published`` without the blocks that the trunk leaves out of its network."""
    beyond = [
        name for name in published if trunk.depth <= (trunk.layer_id(name) or 0) < trunk.full_depth
    ]
    return drop(published, report, f'beyond the first {trunk.depth} blocks', beyond)


def _adapted(
    trunk: Any, published: Mapping[str, Source], report: ConversionReport
) -> dict[str, Source]:
    """What timm makes of ``published``, by its names."""
    values = {name: each.value for name, each in published.items()}
    try:
        adapted = trunk.adapt_state_dict(values)
    except Exception as error:  # noqa: BLE001  it is made for the right files, and fails anyhow
        raise InputError(
            f"{report.title}: timm's checkpoint_filter_fn of {type(trunk.model).__name__} fails on "
            f'the file ({type(error).__name__}: {error}); its keys begin with '
            f'{", ".join([*values][:5])}. {TIMM_REMEDY}'
        ) from error
    by_value = {id(each.value): each for each in published.values()}
    made = Source('', None, None, 'made by timm from other tensors of the file')
    sources = {}
    for name, value in adapted.items():
        origin = published.get(name, made)
        if value is not origin.value:
            origin = by_value.get(id(value), origin)
        note = origin.note if origin is made or value is origin.value else 'adapted by timm'
        sources[name] = origin._replace(value=value, note=note)
        if origin.shape not in (None, value.shape):
            shapes = ' -> '.join('x'.join(map(str, shape)) for shape in (origin.shape, value.shape))
            report.remark(f'{name} resampled by timm: {shapes}')
    used = {each.key for each in sources.values()}
    for each in published.values():
        if each.key not in used:
            note = 'left out by timm, or merged into other tensors'
            report.add(Status.IGNORED, each.key, shape=each.shape, note=note)
    return sources


def published_file(trunk: Any) -> str:
    """Where timm's own weights are: a file of Hugging Face's cache, downloaded if need be, or an
    address.

    Raises:
        InputError: If there are none, or they cannot be had, with what to put where.
    """
    cfg = getattr(trunk.model, 'pretrained_cfg', {})
    repository, address = cfg.get('hf_hub_id'), cfg.get('url') or ''
    if not repository and (not address or address.endswith('.npz')):
        raise InputError(
            f'arch={trunk.name!r}: no weights of this name are known; give pretrained=FILE, or '
            'leave pretrained out for random weights'
        )
    if not repository:
        return address
    import huggingface_hub as hub

    file = cfg.get('hf_hub_filename') or 'model.safetensors'
    address = hub.hf_hub_url(repository, file)
    try:
        cached = hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return cached
        hub.utils.get_session().head(address, timeout=10)  # the download retries for a minute
        return hub.hf_hub_download(repository, file)
    except Exception as error:  # noqa: BLE001  of any library below
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f'arch={trunk.name!r}: its weights cannot be had ({reason}). Where there is a network, '
            f'download {address}, copy the file here, and give pretrained=FILE in place of '
            f'pretrained=True'
        ) from error
