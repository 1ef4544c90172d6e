"""What records say: pure functions from frames to frames. Nothing here trains, reads or writes."""
