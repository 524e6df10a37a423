"""Who this device is to its fleet: its key, its tokens, whom it trusts."""
