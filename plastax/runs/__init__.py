"""What the host does in a run: it calls compiled segments, saves, reports, and handles memory and signals."""
