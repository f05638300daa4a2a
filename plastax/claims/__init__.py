"""Claims about plasticity, judged from runs: rules that give a verdict, the runs that they need, and the page."""
