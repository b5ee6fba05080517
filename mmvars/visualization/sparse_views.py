"""The steps of a sparse code, and the atoms it uses, as rows of panels."""

import numpy as np

from mmvars.analysis import (AtomSet, AtomUse, Blank, HeatMap, Panel, Picture, Row, atom_sets,
                             energy_shares, most_used_atoms, near_zero_share, sparsity_weight,
                             step_maps)
from mmvars.visualization.views import Observation, ViewOptions

__all__ = ['atom_rows', 'step_rows']

MAX_COLUMNS = 8


def step_rows(seen: Observation, options: ViewOptions, label: str = '') -> list[Row]:
    """Input, start, step 1, ... of the block's code: one row for each pass.

    Args:
        label: What to write beside the rows.
    """
    rows, grid = [], seen.codes.grid
    weight = sparsity_weight(seen.codes.mixer, grid)
    for number, trace in enumerate(seen.codes.traces, 1):
        maps = [seen.enlarge(m) for m in step_maps(trace, grid)]
        if options.step_limits == 'relative':
            maps = [m / max(float(m.mean()), 1e-12) for m in maps]
        maps = [options.shown(m) for m in maps]
        limits = None if options.step_limits == 'own' else _range(maps)
        energies = energy_shares(trace, weight)[:, 0].tolist()
        panels: list[Panel] = [Picture(seen.image)]
        for step, (values, code, energy) in enumerate(zip(maps, trace.codes, energies,
                                                          strict=True)):
            note = f'near zero {float(near_zero_share(code)[0]):.0%}, energy {energy:.3g}'
            panels.append(HeatMap(values, seen.image, f'Step {step}' if step else 'Start', note,
                                  limits, options.strength))
        words = [label, f'pass {number}' if len(seen.codes.traces) > 1 else '']
        rows.append(Row(panels, '\n'.join(filter(None, words))))
    return rows


def atom_rows(seen: Observation, options: ViewOptions, label: str = '') -> list[Row]:
    """The input and the atoms that the final code uses most: dynamic ones, then static ones."""
    codes = seen.codes
    rows = []
    for atoms in atom_sets(codes.traces[-1], codes.mixer, codes.grid):
        groups = range(len(atoms.shares)) if options.per_head else [None]
        for group in groups:
            uses = most_used_atoms(atoms.shares, options.atoms, group)
            words = [label, f'{atoms.kind} {"atoms" if atoms.on_image else "filters"}']
            rows += _wrapped(seen, _atom_panels(seen, options, atoms, uses),
                             '\n'.join(filter(None, words)))
    return rows


def _atom_panels(seen: Observation, options: ViewOptions, atoms: AtomSet,
                 uses: list[AtomUse]) -> list[Panel]:
    maps = [atoms.maps[use.group, use.atom] for use in uses]
    if atoms.on_image:
        values = [seen.enlarge(m[None]) for m in maps]
    else:
        values = [m.numpy() for m in maps]
    panels: list[Panel] = []
    for use, value in zip(uses, values, strict=True):
        reach = max(float(np.abs(value).max()), 1e-12)
        # Zero is "no part in the atom": black, or white between the two signs of static atoms.
        low, colour_map = (-reach, 'bwr') if value.min() < 0 else (0., 'inferno')
        group, image = ('head', seen.image) if atoms.on_image else ('channel', None)
        note = f'{use.share:.1%} of the code' if use.share >= 0.001 else '<0.1% of the code'
        panels.append(HeatMap(value, image, f'{group} {use.group}, atom {use.atom}', note,
                              (low, reach), options.strength, colour_map))
    return panels


def _wrapped(seen: Observation, panels: list[Panel], label: str) -> list[Row]:
    """Rows of equal length, as few as possible; the input stands at the head of the first."""
    num_rows = -(-len(panels) // MAX_COLUMNS)
    columns = -(-len(panels) // num_rows)
    rows = []
    for r in range(num_rows):
        part = panels[r * columns:(r + 1) * columns]
        head = Blank() if r else Picture(seen.image)
        rows.append(Row([head, *part, *[Blank()] * (columns - len(part))], '' if r else label))
    return rows


def _range(values: list[np.ndarray]) -> tuple[float, float]:
    return float(min(v.min() for v in values)), float(max(v.max() for v in values))
