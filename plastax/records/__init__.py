"""What is kept: the files of a run directory, how they are written, read and labelled, and the state they tell of."""
