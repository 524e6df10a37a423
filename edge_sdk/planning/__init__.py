"""What a device can afford: measured, predicted, decided."""
