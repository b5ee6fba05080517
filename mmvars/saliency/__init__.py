"""``mmvars attention``: attention maps against eye fixations and masks of objects, in numbers."""
