"""Attention pictures during validation."""

import os
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmvars.errors import check_number
from mmvars.networks.steering import check_top_down, scale_of
from mmvars.registry import HOOKS
from mmvars.visualization.draw import (
    ViewOptions,
    attention_rows,
    check_options,
    maps_footer,
    run_model,
)
from mmvars.visualization.figure import draw_figure, figure_to_array
from mmvars.visualization.model import ClassTable, Model, Sample, network_of, num_classes_of
from mmvars.visualization.priors import PanelConfig

__all__ = ['AttentionVisualizationHook']


@HOOKS.register_module()
class AttentionVisualizationHook(Hook):
    """Draws bottom-up attention, token mask, top-down attention and prediction of a few images.

    The pictures (ground truth included) go to every backend of the visualizer (files, TensorBoard,
    WandB, ...) as ``attention_<number>_<image>``. They show the first images of the validation (or
    test) set, the same ones each time, so that training can be followed in them. Each costs one
    extra forward of one image; validations in between, and all ranks but the first, do nothing.
    Works in MMSegmentation and MMPretrain; evaluation is not touched.

    Args:
        draw: Off by ``--cfg-options custom_hooks.0.draw=False`` without leaving the config.
        interval: Draw at every so many-th validation, the first one included.
        num_images: Images per validation.
        alpha: Scale of the top-down input in the pictures; ``None``: the model's own.
        layer: Block whose tokens are drawn; ``None``: the last but three.
        class_attention: Also draw what the class token attends to in the last block.

    Raises:
        InputError: If a number is not positive, or (before the first iteration) the model cannot
            show what is requested.
    """

    priority = 'LOW'

    def __init__(
        self,
        draw: bool = True,
        interval: int = 1,
        num_images: int = 2,
        alpha: float | None = None,
        layer: int | None = None,
        class_attention: bool = False,
    ) -> None:
        for name, value in (('interval', interval), ('num_images', num_images)):
            check_number(name, value, 1, whole=True)
        self.draw = draw
        self.interval = interval
        self.num_images = num_images
        self.alpha = alpha
        self.options = ViewOptions(layer=layer, class_attention=class_attention)
        self._validations = 0
        self._num_left = 0

    def before_run(self, runner: Runner) -> None:
        """Refuse what cannot be drawn now, not after hours of training."""
        if self.draw:
            model = _unwrapped(runner)
            check_options(model, self.options)
            check_top_down(
                network_of(model),
                has_prior=False,
                has_alpha=self.alpha is not None,
                remedy='leave it out of AttentionVisualizationHook',
            )

    def before_val_epoch(self, runner: Runner) -> None:
        is_due = self.draw and runner.rank == 0 and self._validations % self.interval == 0
        self._num_left = self.num_images if is_due else 0
        self._validations += 1

    def before_test_epoch(self, runner: Runner) -> None:
        self._num_left = self.num_images if self.draw and runner.rank == 0 else 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._draw_batch(runner, data_batch, runner.val_dataloader)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._draw_batch(runner, data_batch, runner.test_dataloader)

    def _draw_batch(self, runner: Runner, data_batch: dict, dataloader: Any) -> None:
        if not self._num_left:
            return
        model = _unwrapped(runner)
        metainfo = getattr(dataloader.dataset, 'metainfo', None)
        classes = ClassTable.of(num_classes_of(model), metainfo)
        # As mmengine's own pictures: epochs in a loop by epochs, else iterations.
        by_epoch = isinstance(runner._train_loop, EpochBasedTrainLoop)
        samples = list(map(Sample, data_batch['inputs'], data_batch['data_samples']))
        for sample in samples[: self._num_left]:
            self._num_left -= 1
            config = PanelConfig(alpha=self.alpha)
            outputs = run_model(model, sample, self.options, config)
            name = os.path.basename(str(sample.data_sample.metainfo.get('img_path', 'image')))
            footer = f'{name} · {maps_footer(model, self.options)}'
            if (alpha := scale_of(network_of(model), self.alpha)) is not None:
                footer += f' · α = {alpha:g}'
            rows = attention_rows([outputs], classes, self.options, [config], [''])
            figure = draw_figure(rows, sample.size, footer)
            title = f'attention_{self.num_images - self._num_left}_{os.path.splitext(name)[0]}'
            runner.visualizer.add_image(
                title, figure_to_array(figure), runner.epoch if by_epoch else runner.iter
            )


def _unwrapped(runner: Runner) -> Model:
    """The model itself, without a DDP wrapper around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
