"""What is asked for: settings, sweeps and shards of a study, and the study that they make."""
