"""Models as files that run without mmvars: ONNX, and torch's own exported programs."""
