import sys
from pathlib import Path

# the oracles of all test folders lie in tests/oracles.py, whichever folder pytest is started on
sys.path.insert(0, str(Path(__file__).parents[1]))
