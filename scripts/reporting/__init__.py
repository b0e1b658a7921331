"""The parts of scripts/report.py; Python's standard library only."""
