import sys
from pathlib import Path

# mechanism_audit.py beside this file and oracles.py above it are imported by name
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
