"""What holds of rounds, cohorts and relays: pure, without a store."""
