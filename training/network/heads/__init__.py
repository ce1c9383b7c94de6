"""What a network knows of its task: one file per task, found through the registry."""
