"""The tools are scripts, not a package: import them from their folders."""

import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
for folder in (TOOLS, TOOLS / 'benchmark'):
    sys.path.insert(0, str(folder))
