"""Studies, one a file: `plastax list experiments`."""
