"""Attention pictures during validation."""

import os

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmvars.analysis import Row, draw_figure, figure_to_array, resolve_layer
from mmvars.errors import check_number
from mmvars.registry import HOOKS
from mmvars.visualization.host import ClassTable, Sample, network_of, num_classes_of, unwrap
from mmvars.visualization.steering import Steering, check_steering, maps_footer
from mmvars.visualization.views import ViewOptions, check_options, observe, panels_of

__all__ = ['AttentionVisualizationHook']


@HOOKS.register_module()
class AttentionVisualizationHook(Hook):
    """Draws bottom-up attention, token mask, top-down attention and prediction of a few images.

    The pictures go to every backend of the visualizer (files, TensorBoard, WandB, ...) as
    ``attention_<number>_<image>``. They show the first images of the validation (or test) set, the
    same ones each time, so that training can be followed in them. Each costs one extra forward of
    one image; validations in between, and all ranks but the first, do nothing. Works in
    MMSegmentation and MMPretrain; evaluation is not touched.

    Args:
        draw: Off by ``--cfg-options custom_hooks.0.draw=False`` without leaving the config.
        interval: Draw at every so many-th validation, the first one included.
        num_images: Images per validation.
        alpha: Scale of the top-down signal in the pictures; ``None``: the model's own.
        layer: Block whose tokens are drawn; ``None``: the last but three.
        class_attention: Also draw what the class token attends to in the last block.

    Raises:
        InputError: If ``interval`` or ``num_images`` is no positive number, or (before the first
            iteration) the model has no mmvars backbone, no such layer, no class token to draw, or
            no use for ``alpha``.
    """

    priority = 'LOW'

    def __init__(self, draw: bool = True, interval: int = 1, num_images: int = 2,
                 alpha: float | None = None, layer: int | None = None,
                 class_attention: bool = False) -> None:
        for name, value in (('interval', interval), ('num_images', num_images)):
            check_number(name, value, 1, whole=True)
        self.draw = draw
        self.interval = interval
        self.num_images = num_images
        self.alpha = alpha
        self.options = ViewOptions(layer=layer, class_attention=class_attention)
        self._validations = 0
        self._left = 0

    def before_run(self, runner: Runner) -> None:
        """Refuse what cannot be drawn now, not after hours of training."""
        if not self.draw:
            return
        network = network_of(unwrap(runner.model))
        check_options(network, self.options)
        check_steering(network, alpha=self.alpha is not None,
                       remedy='leave it out of AttentionVisualizationHook')

    def before_val_epoch(self, runner: Runner) -> None:
        wanted = self.draw and runner.rank == 0 and self._validations % self.interval == 0
        self._left = self.num_images if wanted else 0
        self._validations += 1

    def before_test_epoch(self, runner: Runner) -> None:
        self._left = self.num_images if self.draw and runner.rank == 0 else 0

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                       outputs=None) -> None:
        if self._left:
            self._draw_batch(runner, data_batch, runner.val_dataloader.dataset)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None,
                        outputs=None) -> None:
        if self._left:
            self._draw_batch(runner, data_batch, runner.test_dataloader.dataset)

    def _draw_batch(self, runner: Runner, data_batch: dict, dataset) -> None:
        model = unwrap(runner.model)
        classes = ClassTable.of(num_classes_of(model), getattr(dataset, 'metainfo', None))
        for inputs, data_sample in zip(data_batch['inputs'], data_batch['data_samples'],
                                       strict=True):
            if not self._left:
                return
            self._left -= 1
            self._draw(runner, self.num_images - self._left, Sample(inputs, data_sample), classes)

    def _draw(self, runner: Runner, number: int, sample: Sample, classes: ClassTable) -> None:
        model = unwrap(runner.model)
        network = network_of(model)
        seen = observe(model, sample, self.options, alpha=self.alpha)
        name = os.path.basename(str(sample.data_sample.metainfo.get('img_path', 'image')))
        layer = resolve_layer(self.options.layer, network.trunk.depth)
        footer = f'{name} · {maps_footer(network, layer)}'
        if (alpha := Steering(alpha=self.alpha).scale(network)) is not None:
            footer += f' · α = {alpha:g}'
        figure = draw_figure([Row(panels_of(seen, classes, self.options))], sample.size, footer)
        stem = os.path.splitext(name)[0]
        runner.visualizer.add_image(f'attention_{number}_{stem}', figure_to_array(figure),
                                    _step(runner))


def _step(runner: Runner) -> int:
    """What the host's own pictures are numbered by: epochs in a loop by epochs, else iterations."""
    by_epoch = isinstance(runner._train_loop, EpochBasedTrainLoop)
    return runner.epoch if by_epoch else runner.iter
