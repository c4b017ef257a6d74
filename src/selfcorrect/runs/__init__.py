"""A whole run: its door (run), its loop (loop) and its keeping (checkpoint, folder); display and alarms."""
