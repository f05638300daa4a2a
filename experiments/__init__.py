"""Studies, one a file: `python -m plastax list experiments`."""
