"""What an operator watches and keeps: overview, probes, metrics, log, backup."""
