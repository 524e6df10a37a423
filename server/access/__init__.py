"""Who may talk to the server and as whom it speaks: tokens, keys, quotas, the audit log."""
