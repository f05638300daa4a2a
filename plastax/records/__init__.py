"""Run directories: how their files are written, read and labelled, and what state a run is in."""
