"""What a run shows to people: tables and pictures."""
