"""What a run prints and draws: tables and pictures."""
