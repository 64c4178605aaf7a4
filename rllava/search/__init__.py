"""What a search knows: its space, its objectives, its rungs, and what was proposed and came out so far. No Ray here."""
