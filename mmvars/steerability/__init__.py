"""``mmvars steerability``: does a model follow its prior? Measures, controls, spread, pictures."""
