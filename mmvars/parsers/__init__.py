"""The arguments of every command, one module each.

Nothing here imports torch or OpenMMLab, which takes seconds: ``--help`` and wrong arguments are
answered at once. What needs them, such as the values of ``--cfg-options``, is checked later.
"""
