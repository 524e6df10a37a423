"""The workload of ``bench.against_flower`` as a Flower app; runs in Flower's environment only."""
