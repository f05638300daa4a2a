"""What a user asks for: experiments, their settings, sweeps, and shards as jobs."""
