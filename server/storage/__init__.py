"""What the server remembers: its rows, the interface of a place that keeps them, and SQL."""
