"""The endpoints: decode, one call, encode; no rule lives here."""
