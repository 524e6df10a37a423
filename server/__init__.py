"""The aggregation server: durable rounds of federated sketched LoRA, on NumPy alone."""
