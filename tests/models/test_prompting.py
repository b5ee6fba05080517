"""Training that follows the prior: what is asked, what is answered, and what it trains."""

import math
from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.resources import resource_root

pytest.importorskip('mmseg.models', exc_type=ImportError)

from mmseg.structures import SegDataSample  # noqa: E402

from mmvars.models.prior_loss import region_prior_loss  # noqa: E402
from mmvars.models.prompting import PriorSampler, PromptHead  # noqa: E402

CLASSES, IGNORED = 5, 255
GN = dict(type='GN', num_groups=2)


def sample(labels, **fields):
    return SegDataSample(
        gt_sem_seg=PixelData(data=labels[None]), metainfo=dict(img_shape=labels.shape, **fields)
    )


def halves(left, right, size=(8, 12)):
    """Labels whose left half is one class, and whose right half is another."""
    labels = torch.full(size, left)
    labels[:, size[1] // 2 :] = right
    return labels


def segmentor(**options):
    torch.manual_seed(0)
    steering = dict(
        prior_sampler=dict(type='mmvars.PriorSampler', mosaic=0.0),
        prompt_head=dict(type='mmvars.PromptHead', channels=8, norm_cfg=GN),
        prior_loss_weight=1.0,
    )
    backbone = dict(
        type='mmvars.AbSViT',
        arch=dict(embed_dims=24, num_layers=2, num_heads=3, patch_size=8),
        img_size=32,
        prior='learned_classes',
    )
    backbone.update(options.pop('backbone', {}))
    head = dict(type='mmvars.LinearHead', num_classes=CLASSES, norm_cfg=GN)
    return MODELS.build(
        dict(type='mmvars.EncoderDecoder', backbone=backbone, decode_head=head) | steering | options
    )


class TestPriorSampler:
    def test_shares_and_classes(self):
        torch.manual_seed(0)
        labels = halves(1, 3)
        labels[0, 0], labels[0, 1], labels[-1] = 4, IGNORED, IGNORED  # 4 is one pixel of 96
        sampler = PriorSampler(present=0.5, absent=0.3, mosaic=0, min_share=0.02)
        samples = [sample(labels) for _ in range(4000)]
        _, drawn = sampler(torch.zeros(4000, 3, 8, 12), samples, CLASSES, IGNORED)
        counts = Counter(each.prior for each in drawn)
        assert set(counts) == {-1, 0, 1, 2, 3}  # 4 is there, but too small, so that it is neither
        spread = 4 * math.sqrt(4000 * 0.25)
        for ids, share in (([1, 3], 0.5), ([0, 2], 0.3), ([-1], 0.2), ([1], 0.25), ([0], 0.15)):
            assert abs(sum(counts[i] for i in ids) - 4000 * share) < spread, (ids, counts)
        assert all('prior' not in each for each in samples)

    def test_a_class_that_cannot_be_drawn_is_none(self):
        for labels, share in (
            (torch.full((4, 4), IGNORED), dict(present=1.0, absent=0.0)),
            (torch.arange(CLASSES).repeat(4, 1), dict(present=0.0, absent=1.0)),
        ):
            sampler = PriorSampler(**share, mosaic=0)
            _, (drawn,) = sampler(torch.zeros(1, 3, 4, 4), [sample(labels)], CLASSES, IGNORED)
            assert drawn.prior == -1

    def test_what_is_held_out_is_not_asked_for(self):
        sampler = PriorSampler(present=0.5, absent=0.5, mosaic=0, held_out=[1, 4])
        samples = [sample(halves(0, 1)) for _ in range(200)]
        _, drawn = sampler(torch.zeros(200, 3, 8, 12), samples, CLASSES, IGNORED)
        assert {each.prior for each in drawn} == {0, 2, 3}

    def test_a_prior_of_the_sample_stays(self):
        sampler = PriorSampler(present=1.0, absent=0.0, mosaic=1.0)
        images, labels = torch.rand(2, 3, 8, 12), halves(0, 1)
        out, drawn = sampler(
            images, [sample(labels, prior=4), sample(labels, prior=2)], CLASSES, IGNORED
        )
        assert [each.prior for each in drawn] == [4, 2] and torch.equal(out, images)

    def test_mosaics_move_pixels_and_labels_alike(self):
        """Images that show their labels still show them afterwards."""
        torch.manual_seed(1)
        labels = [torch.full((6, 10), index) for index in range(4)]
        images = torch.stack([each.float().expand(3, -1, -1) for each in labels])
        seen = set()
        for _ in range(20):
            samples = [sample(each) for each in labels]
            out, drawn = PriorSampler(mosaic=1.0)(images, samples, CLASSES, IGNORED)
            for image, each in zip(out, drawn, strict=True):
                mixed = each.gt_sem_seg.data
                torch.testing.assert_close(image, mixed.float().expand(3, -1, -1))
                assert 0 <= each.prior < CLASSES or each.prior == -1
                corners = mixed[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist()
                seen.add((corners[0] == corners[1], corners[0] == corners[2]))
            kept = zip(samples, labels, strict=True)
            assert all(torch.equal(each.gt_sem_seg.data[0], label) for each, label in kept)
        assert seen == {(False, True), (True, False), (False, False)}  # all three layouts

    def test_a_mosaic_of_one_image_is_said_to_be_none(self, caplog):
        sampler = PriorSampler(mosaic=1.0)
        with caplog.at_level('WARNING'):
            out, _ = sampler(torch.ones(1, 3, 8, 12), [sample(halves(0, 1))], CLASSES, IGNORED)
        assert out.eq(1).all()

    @pytest.mark.parametrize(
        'options, message',
        [
            (dict(present=0.8, absent=0.3), r'present \(0.8\) and absent \(0.3\).* add up to 1'),
            (dict(mosaic=2), 'mosaic of the PriorSampler'),
            (dict(min_share=-1), 'min_share of the PriorSampler'),
            (dict(alpha_factors=2.0), r'must be two numbers.*got 2\.0'),
            (dict(alpha_factors=(2.0, 1.0)), r'alpha_factors\[1\] of the PriorSampler'),
        ],
    )
    def test_bad_numbers(self, options, message):
        with pytest.raises(InputError, match=message):
            PriorSampler(**options)

    def test_annotations_that_a_mosaic_would_not_move(self):
        both = [sample(halves(0, 1)) for _ in range(2)]
        for each in both:
            each.gt_edge_map = PixelData(data=halves(0, 1)[None])
        with pytest.raises(InputError, match='gt_edge_map.* set mosaic=0'):
            PriorSampler(mosaic=0.5)(torch.zeros(2, 3, 8, 12), both, CLASSES, IGNORED)


class TestPromptHead:
    def test_losses_of_hand_made_answers(self):
        head = PromptHead(2, norm_cfg=GN)
        labels = torch.stack([halves(0, 1), halves(0, IGNORED), halves(2, 2)])[:, None]
        asked = torch.tensor([1, 3, -1])
        losses = head.loss([torch.rand(3, 2, 4, 6)], labels, asked, IGNORED)
        logits = {}
        for name, left, right in (('right', -20.0, 20.0), ('wrong', 20.0, -20.0)):
            answer = torch.full((3, 1, 8, 12), left)
            answer[0, :, :, 6:] = right
            head.forward = lambda feats, answer=answer: answer
            logits[name] = head.loss([], labels, asked, IGNORED)
        # Right: all of class 1, nothing of the absent class 3, whose ignored half does not count.
        assert logits['right']['loss_bce'] < 1e-6 and logits['right']['loss_dice'] < 1e-6
        torch.testing.assert_close(logits['wrong']['loss_bce'], torch.tensor(20.0))
        assert logits['wrong']['loss_dice'] > 0.97
        assert 0 < losses['loss_bce'] < 20

    def test_nothing_asked_costs_nothing_and_keeps_the_graph(self):
        head = PromptHead(2, norm_cfg=GN)
        labels = halves(0, 1)[None, None]
        losses = head.loss([torch.rand(1, 2, 4, 6)], labels, torch.tensor([-1]), IGNORED)
        total = losses['loss_bce'] + losses['loss_dice']
        assert total == 0
        total.backward()
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


class TestPriorLoss:
    def test_is_the_equation(self):
        """Eq. 2.15 written as it is printed, over the regions of two images."""
        torch.manual_seed(0)
        tokens, priors = torch.randn(2, 6, 4, 6), torch.randn(CLASSES, 6)
        labels = torch.stack([halves(0, 1), halves(1, IGNORED)])[:, None]
        regions = [
            (0, tokens[0, :, :, :3].mean((1, 2))),
            (1, tokens[0, :, :, 3:].mean((1, 2))),
            (1, tokens[1, :, :, :3].mean((1, 2))),
        ]
        terms = []
        for class_id, region in regions:
            scores = {
                index: math.exp(F.cosine_similarity(priors[class_id], other, dim=0) / 0.07)
                for index, (_, other) in enumerate(regions)
            }
            own = math.exp(F.cosine_similarity(priors[class_id], region, dim=0) / 0.07)
            negatives = sum(scores[i] for i, (c, _) in enumerate(regions) if c != class_id)
            terms.append(-math.log(own / (own + negatives)))
        loss = region_prior_loss(tokens, priors, labels, IGNORED)
        torch.testing.assert_close(loss, torch.tensor(sum(terms) / 3))

    def test_one_class_has_nothing_to_tell_apart(self):
        priors = torch.randn(CLASSES, 6, requires_grad=True)
        for label in (2, IGNORED):
            loss = region_prior_loss(
                torch.randn(2, 6, 4, 6), priors, torch.full((2, 1, 8, 12), label), IGNORED
            )
            loss.backward()
            assert loss == 0 and not priors.grad.any()

    def test_reaches_a_prior_that_the_clamped_cosine_does_not(self):
        tokens = torch.randn(1, 6, 4, 6) + 3
        priors = (-torch.ones(CLASSES, 6)).requires_grad_()
        region_prior_loss(tokens, priors, halves(0, 1)[None, None], IGNORED).backward()
        assert priors.grad[:2].any() and not priors.grad[2:].any()


class TestSegmentor:
    def batch(self, *priors):
        torch.manual_seed(3)
        images = torch.randn(len(priors), 3, 32, 32)
        samples = [
            sample(halves(0, 1, (32, 32)), **({} if prior is None else dict(prior=prior)))
            for prior in priors
        ]
        return images, samples

    def test_without_it_nothing_changes(self):
        """The losses of the head are those of the model without the three options."""
        plain = segmentor(prior_sampler=None, prompt_head=None, prior_loss_weight=0)
        steered = segmentor()
        steered.load_state_dict(plain.state_dict(), strict=False)
        images, samples = self.batch(1, -1)
        before, after = plain.loss(images, samples), steered.loss(images, samples)
        assert set(after) - set(before) == {'prompt.loss_bce', 'prompt.loss_dice', 'loss_prior'}
        for name, value in before.items():
            torch.testing.assert_close(after[name], value)

    def test_every_parameter_trains_whatever_is_drawn(self):
        """DDP stops at one without a gradient."""
        for priors in ((-1, -1), (0, 3)):
            model = segmentor()
            images, samples = self.batch(*priors)
            losses = model.loss(images, samples)
            sum(value for name, value in losses.items() if 'loss' in name).backward()
            missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
            assert not missing

    def test_half_precision_is_near(self):
        """Sums over many pixels and the cosines of Eq. 2.15 stay in float32."""
        model = segmentor()
        images, samples = self.batch(0, 3)
        exact = model.loss(images, samples)
        with torch.autocast('cpu', torch.bfloat16):
            near = model.loss(images, samples)
        for name in ('prompt.loss_bce', 'prompt.loss_dice', 'loss_prior'):
            assert near[name].dtype == torch.float32
            torch.testing.assert_close(near[name], exact[name], rtol=0.05, atol=0.01)

    def test_asking_for_nothing_feeds_nothing_back(self):
        network = segmentor().backbone.network
        images = torch.randn(2, 3, 32, 32)
        output = network(images, torch.tensor([-1, 2]))
        assert not output.token_weights[0].any() and output.token_weights[1].any()
        assert not network(images).token_weights.any()
        alone = network(images[1:], torch.tensor([2]))
        torch.testing.assert_close(output.second.tokens[1:], alone.second.tokens)

    def test_it_learns_to_follow(self):
        """One picture, two things in it, two questions: the answer depends on the question."""
        torch.manual_seed(0)
        model = segmentor(prior_loss_weight=0.5, backbone=dict(alpha=10.0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        colors = torch.randn(CLASSES, 3, 1, 1)
        generator = torch.Generator().manual_seed(0)

        def draw(count):
            pairs = [torch.randperm(CLASSES, generator=generator)[:2] for _ in range(count)]
            labels = [halves(int(a), int(b), (32, 32)) for a, b in pairs]
            images = torch.stack([colors[each, :, 0, 0].permute(2, 0, 1) for each in labels])
            return images + 0.1 * torch.randn(images.shape, generator=generator), labels

        for _ in range(120):
            images, labels = draw(8)
            losses = model.loss(images, [sample(each) for each in labels])
            optimizer.zero_grad()
            sum(value for name, value in losses.items() if 'loss' in name).backward()
            optimizer.step()
        model.eval()
        images, labels = draw(20)
        followed = 0
        for image, label in zip(images, labels, strict=True):
            ids = torch.stack([label[0, 0], label[0, -1]])
            with torch.no_grad():
                feats = model.backbone(image.expand(2, -1, -1, -1), ids)
                answer = F.interpolate(model.prompt_head(feats).sigmoid(), (32, 32))[:, 0]
            left, right = answer[:, :, :16].mean((1, 2)), answer[:, :, 16:].mean((1, 2))
            followed += bool(left[0] > right[0] and left[1] < right[1])
        assert followed >= 16  # an answer that ignores the question follows never

    def test_frozen_heads_keep_weights_and_statistics(self):
        head = dict(type='mmvars.LinearHead', num_classes=CLASSES, norm_cfg=dict(type='BN'))
        neck = dict(type='mmseg.FPN', in_channels=[24], out_channels=24, num_outs=1)
        model = segmentor(decode_head=head, auxiliary_head=[head], neck=neck, frozen_heads=True)
        parts = ('neck.', 'decode_head.', 'auxiliary_head.', 'prompt_head.')
        usual = {n: p.clone() for n, p in model.state_dict().items() if n.startswith(parts)}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model.train()
        losses = model.loss(*self.batch(0, 3))
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
        moved = {n for n, p in model.state_dict().items() if n in usual and not p.equal(usual[n])}
        assert moved and all(name.startswith('prompt_head.') for name in moved)

    def test_alpha_is_drawn_for_each_image(self):
        torch.manual_seed(0)
        sampler = PriorSampler(alpha_factors=(0.25, 4))
        factors = sampler.draw_factors(4000)
        assert 0.25 <= factors.min() < 0.3 and 3.5 < factors.max() <= 4
        assert factors.log().mean().abs() < 0.1
        model = segmentor()
        seen = []
        model.backbone.network.feedback.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[1].amax((1, 2)))
        )
        model.loss(*self.batch(0, 0))
        model.prior_sampler.alpha_factors = 1.0, 1.0
        model.loss(*self.batch(0, 0))
        ratio = seen[0] / seen[1]
        assert ratio[0] != ratio[1] and ((0.5 <= ratio) & (ratio <= 2)).all()

    @pytest.mark.parametrize('design', ['mask_attention', 'perceiver_io'])
    def test_rivals_that_multiply_leave_all_as_it_is(self, design):
        """Where they are asked for nothing; each has the losses of the others."""
        model = segmentor(backbone=dict(design=design)).eval()
        network, images = model.backbone.network, torch.randn(2, 3, 32, 32)
        output = network(images, torch.tensor([-1, 2]))
        assert output.token_weights[0].eq(1).all() and not output.token_weights[1].eq(1).all()
        plain = network.trunk(images)
        torch.testing.assert_close(output.second.tokens[0], plain.tokens[0])
        assert model.loss(*self.batch(0, 3))['prompt.loss_bce'] > 0

    def test_design_without_prior_is_not_told_the_question(self):
        model = segmentor(
            backbone=dict(design='feedback', prior='learned_query'), prior_loss_weight=0
        )
        losses = model.loss(*self.batch(0, None))
        assert losses['prompt.loss_bce'] > 0

    @pytest.mark.parametrize(
        'options, message',
        [
            (dict(prompt_head=None), 'give both, or neither; got prior_sampler alone'),
            (dict(prior_sampler=None), 'give both, or neither; got prompt_head alone'),
            (dict(backbone=dict(prior='learned_query')), 'aligns class priors with tokens'),
            (
                dict(backbone=dict(prior='learned_query'), prior_loss_weight=0),
                'no class priors.*AbSViT with LearnedQuery',
            ),
            (dict(prior_loss_weight=-1), 'prior_loss_weight'),
        ],
    )
    def test_what_would_train_nothing_is_refused(self, options, message):
        with pytest.raises(InputError, match=message):
            segmentor(**options)

    def test_prototypes_that_nobody_loaded(self):
        model = segmentor(backbone=dict(prior='class_prototype'), prior_loss_weight=0)
        with pytest.raises(InputError, match='are all zero'):
            model.loss(*self.batch(None, None))
        model.backbone.network.prior.prototypes.normal_()
        assert model.loss(*self.batch(None, None))['prompt.loss_dice'] >= 0

    def test_a_class_is_asked_for_by_its_name(self):
        """Losses are those of a table of priors that are the mapped names."""
        model = segmentor(backbone=dict(prior=dict(type='text', text_dim=10)))
        prior = model.backbone.network.prior
        assert prior.num_classes == CLASSES
        with pytest.raises(InputError, match='are all zero.*mmvars prototypes.*--text FOLDER'):
            model.loss(*self.batch(0, 3))
        prior.texts[:] = torch.randn(CLASSES, 1, 10)
        table = segmentor()
        table.load_state_dict(model.state_dict(), strict=False)
        with torch.no_grad():
            table.backbone.network.prior.prototypes.copy_(prior.projection(prior.texts[:, 0]))
        losses = []
        for each in (model, table):
            each.prior_sampler.alpha_factors = 1.0, 1.0
            losses.append(each.loss(*self.batch(0, 3)))
        for name, value in losses[0].items():
            torch.testing.assert_close(value, losses[1][name])
        losses[0]['loss_prior'].backward()
        assert prior.projection.weight.grad.any()

    def test_what_is_held_out_is_not_seen(self):
        """Its pixels could have any label: no question, loss or gradient of a prior changes."""
        options = dict(prior_sampler=dict(type='mmvars.PriorSampler', mosaic=0.0, held_out=[1, 4]))
        model, results = segmentor(**options), []
        for label in (1, 4, IGNORED):
            images, samples = self.batch(0, None)
            for each in samples:
                each.gt_sem_seg.data[each.gt_sem_seg.data == 1] = label
            torch.manual_seed(5)
            losses = model.loss(images, samples)
            model.zero_grad()
            losses['loss_prior'].backward(retain_graph=True)
            results.append((losses, model.backbone.network.prior.prototypes.grad.clone()))
        for losses, gradient in results[1:]:
            for name in ('prompt.loss_bce', 'prompt.loss_dice', 'loss_prior'):
                assert torch.equal(losses[name], results[0][0][name])
            assert torch.equal(gradient, results[0][1])
        with pytest.raises(InputError, match=r'held_out=\[5\] .* from 0 to 4'):
            segmentor(prior_sampler=dict(type='mmvars.PriorSampler', held_out=[5]))

    def test_a_vector_has_no_mask(self):
        with pytest.raises(InputError, match='prompt_head learns from class ids'):
            segmentor().loss(*self.batch(torch.ones(24), torch.ones(24)))


def test_the_base_config_turns_it_on(tmp_path):
    root = resource_root() / 'configs'
    leaf = tmp_path / 'steerable.py'
    names = [
        root / 'absvit/absvit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256.py',
        root / '_base_/steerable.py',
    ]
    leaf.write_text(f'_base_ = {[*map(str, names)]}\nmodel = _base_.steerable\n')
    cfg = Config.fromfile(leaf)
    cfg.model.backbone.arch = dict(embed_dims=24, num_layers=12, num_heads=3)
    model = MODELS.build(cfg.model)
    assert len(model.backbone.network.prior.prototypes) == cfg.model.decode_head.num_classes
    assert model.prior_sampler.present == 0.5 and model.prompt_head is not None
