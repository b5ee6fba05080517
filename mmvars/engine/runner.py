"""mmengine's Runner, with checkpoints loaded strictly and safely."""

import re
from collections.abc import Callable, Iterable, Mapping

from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor

from mmvars.checkpoints.account import Account, Status
from mmvars.checkpoints.constants import check_constants, mixer_meta, recorded_mixer
from mmvars.checkpoints.files import read_meta
from mmvars.checkpoints.formats import MMVARS
from mmvars.checkpoints.mixers import mixers_seen
from mmvars.engine.safe_load import load_from_local
from mmvars.errors import InputError
from mmvars.networks import Trunk

__all__ = ['StrictRunner', 'allowed_constants', 'use_safe_loading']

_KINDS = {'unexpected key in source state_dict': Status.UNEXPECTED,
          'missing keys in source state_dict': Status.MISSING}


def allowed_constants(cfg: Mapping) -> tuple[str, ...]:
    """Constants of the mixer in which a config lets a checkpoint differ: ``allow_constants``."""
    names = cfg.get('allow_constants') or ()
    return (names, ) if isinstance(names, str) else tuple(map(str, names))


def use_safe_loading() -> None:
    """Make every local checkpoint that mmengine loads in this process go through the safe reader.

    For the command-line tools, which own their process: files named in a config (``load_from``,
    ``init_cfg``) are as untrusted as those on the command line.
    """
    CheckpointLoader.register_scheme('', load_from_local, force=True)


class StrictRunner(Runner):
    """A Runner that refuses checkpoints which do not fit, where mmengine only logs them.

    Testing and resuming need every key to match. Fine-tuning (``load_from`` in training) may leave
    out or replace parts, such as a head with other classes, but must fill some of the backbone.

    No tensor shows how many steps a mixer makes, or how sparse its codes are: checkpoints say it in
    their ``meta``, and one that was made with other constants is refused, but for those that the
    config names in ``allow_constants``.
    """

    _training = False

    def train(self):
        """Launch training."""
        self._training = True
        return super().train()

    def dump_config(self) -> None:
        """Do nothing while the Runner is built: see :meth:`load_or_resume`."""

    def load_or_resume(self) -> None:
        """Load what was asked for, and then write the config into the work dir.

        mmengine writes it when the Runner is built. Here it waits until models, data sets and
        checkpoint have proved usable, since it replaces the file of an earlier run.
        """
        super().load_or_resume()
        super().dump_config()

    def load_checkpoint(self, filename: str, map_location: str | Callable = 'cpu',
                        strict: bool | None = None, **kwargs) -> dict:
        """Load ``filename`` into the model.

        Args:
            filename: Path or address of the checkpoint.
            map_location: As for :func:`torch.load`.
            strict: Whether every key must match; None: in testing and resuming.

        Returns:
            The checkpoint.

        Raises:
            InputError: If it does not fit the model, or cannot be resumed from.
        """
        fine_tuning = self._training and not self._resume
        strict = not fine_tuning if strict is None else strict
        try:
            checkpoint = super().load_checkpoint(filename, map_location, strict=strict, **kwargs)
        except RuntimeError as error:
            if 'do not match exactly' not in str(error):
                raise
            account = _account_of(str(error), f'checkpoint {filename!r} into the model of this '
                                  'config')
            account.raise_problems(f'{self._other_mixer(filename)}Use the config that it was '
                                   'trained with; a released or timm file goes through `mmvars '
                                   'convert` first')
        trunk = self._trunk()
        if trunk is not None:
            account = Account(f'checkpoint {filename!r}')
            recorded = recorded_mixer(read_meta(filename, checkpoint), account.title)
            check_constants(trunk, recorded, account, allowed_constants(self.cfg))
        if fine_tuning:
            self._need_some_backbone(checkpoint, filename)
        elif self._resume and not ('optimizer' in checkpoint and {'epoch', 'iter'}
                                   <= dict(checkpoint.get('meta') or {}).keys()):
            raise InputError(f'checkpoint {filename!r} holds weights only, no training state to '
                             'resume from: use --cfg-options load_from=... to start from it')
        return checkpoint

    def save_checkpoint(self, *args, meta: dict | None = None, **kwargs) -> None:
        """As mmengine's, with the constants of the token mixer in ``meta``."""
        trunk = self._trunk()
        stated = {} if trunk is None else mixer_meta(trunk)
        super().save_checkpoint(*args, meta=stated | (meta or {}), **kwargs)

    def _trunk(self) -> Trunk | None:
        return next((m for m in self.model.modules() if isinstance(m, Trunk)), None)

    def _other_mixer(self, filename: str) -> str:
        """A sentence on the mixers, where those of a local file are none of the model's."""
        if '://' in filename:
            return ''
        checkpoint = load_from_local(filename)
        found = _mixers(checkpoint.get('state_dict', checkpoint))
        own = _mixers(self.model.state_dict())
        if not found or not own or found & own:
            return ''
        return (f'The file mixes tokens with {", ".join(sorted(found))}, the model with '
                f'{", ".join(sorted(own))}. ')

    def _need_some_backbone(self, checkpoint: dict, filename: str) -> None:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        source = checkpoint.get('state_dict', checkpoint)
        targets = {k: v for k, v in model.state_dict().items() if k.startswith('backbone.')}
        fitting = [k for k, v in targets.items()
                   if isinstance(source.get(k), Tensor) and source[k].shape == v.shape]
        self.logger.info(f'load_from fills {len(fitting)} of the {len(targets)} tensors of the '
                         'backbone')
        if targets and not fitting:
            example = next((k for k in source), None)
            raise InputError(f'load_from {filename!r} fills no tensor of the backbone (its keys '
                             f'are like {example!r}, wanted are like {next(iter(targets))!r}): '
                             'convert it with `mmvars convert`')


def _mixers(keys: Iterable[str]) -> set[str]:
    names = (MMVARS.to_network(key.removeprefix('module.')) for key in keys)
    return set(mixers_seen([name[0] for name in names if name]))


def _account_of(misfits: str, title: str) -> Account:
    """mmengine's list of what does not fit as an account, in which like keys share a line."""
    account = Account(title)
    for line in filter(None, misfits.splitlines()[1:]):
        kind, _, rest = line.partition(': ')
        if kind.startswith('size mismatch for '):
            shapes = [tuple(map(int, re.findall(r'\d+', shape)))
                      for shape in re.findall(r'torch\.Size\(\[([^]]*)\]\)', rest)]
            account.add(Status.MISSHAPED, kind.removeprefix('size mismatch for '), None,
                        *shapes[:2], note='' if shapes else rest)
        elif kind in _KINDS:
            for key in rest.split(', '):
                account.add(_KINDS[kind], key)
        else:
            account.add(Status.BROKEN, note=line)
    return account
