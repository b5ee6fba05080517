"""`tools/benchmark/text_priors.py`: what is measured. No test is about text itself."""

import numpy as np
import pytest
import torch
from PIL import Image

NAMES = ['road', 'dog', 'sky', 'cat', 'sea']


class Numbers:
    """An encoder with a random embedding for each text."""

    def encode(self, texts):
        seeds = [sum(map(ord, text)) for text in texts]
        return torch.stack(
            [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )


def test_the_area_counts_pairs_of_patches_and_ties_half():
    from text_priors import auc

    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    inside = torch.tensor([False, True, True, False, False])
    # 1 is above 0 alone; 2 is above 0, and ties with 2: 2.5 of 6 pairs.
    torch.testing.assert_close(auc(scores, inside).float(), torch.tensor([2.5 / 6, 0.5]))


def test_a_prior_knows_nothing_of_its_own_class():
    from text_priors import held_out_priors

    prototypes = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    priors = held_out_priors(NAMES, prototypes, Numbers(), 0.3)
    prototypes[2] += 1
    others = held_out_priors(NAMES, prototypes, Numbers(), 0.3)
    changed = (priors != others).any(dim=1)
    assert changed.tolist() == [True, True, False, True, True]
    shuffled = held_out_priors(NAMES, prototypes, Numbers(), 0.3, torch.Generator().manual_seed(0))
    assert not torch.allclose(shuffled, others)


def test_rows_are_those_of_the_classes_in_an_image():
    from text_priors import ROWS, measure, render

    prototypes = torch.eye(5, 6)
    classes = torch.tensor([0, 0, 3, 3, 5])
    tokens = torch.cat([prototypes, torch.ones(1, 6)])[classes] + 0.01
    scores = measure([(tokens, classes)], NAMES, prototypes, Numbers(), 0.3)
    assert scores['mask']['prototype'] == [1.0, 1.0]  # of road and cat
    for rows in scores.values():
        assert {*rows} == {*ROWS}
        difference = np.subtract(rows['right name'], rows['wrong names'])
        np.testing.assert_allclose(rows['right - wrong'], difference)
    assert '| prototype | 1.000 [1.000, 1.000], sd 0.00 |' in render(scores)


@pytest.mark.slow
def test_the_script_runs_on_a_folder(tmp_path, monkeypatch, capsys):
    import text_priors

    monkeypatch.setattr(text_priors, 'SentenceEncoder', lambda folder: Numbers())
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('images', 'masks'):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(2):
            mask = np.repeat(rng.permutation([0, 1, 2, 7]), 16)[None].repeat(40, axis=0)
            pixels = rng.integers(0, 255, (40, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'images/{split}/{index}.jpg')
            Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f'masks/{split}/{index}.png')
    (tmp_path / 'classes.yaml').write_text(
        'classes: {0: unlabeled, 1: sky-other-merged, 2: dog, 5: cat, 7: sea}'
    )
    words = [str(tmp_path), '--text', 'x', '--arch', 'timm/test_vit', '--pretrained', '']
    assert text_priors.main(words) == 0
    assert '| AUC, 3 classes | mask | cosine |' in capsys.readouterr().out
