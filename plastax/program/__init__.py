"""What is compiled: one network's training as pure functions, and the same over many networks."""
