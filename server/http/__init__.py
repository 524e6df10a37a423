"""HTTP itself: bounds, ranges, problems, ids and threads, whatever is asked for."""
