"""How federated LoRA methods compare on fleets of unequal devices."""
