"""``mmvars steer``: a local web page on which a model is prompted, see ``server.py``."""
