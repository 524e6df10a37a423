"""``edge-sdk doctor``: what usually fails on a device, tried, with the fix for each."""
