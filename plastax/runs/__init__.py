"""The host of a run: segment after segment, checkpoints, compilation, memory, signals, timing."""
