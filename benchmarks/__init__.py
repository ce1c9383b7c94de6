"""Speed, measured: load generators, the servers Sluice is compared with, and the tables. Not installed, not a test."""
