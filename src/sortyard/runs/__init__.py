"""What a run writes down and shows: its folder, records, lock, environment, display and trackers; imports no torch."""
