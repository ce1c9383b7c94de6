"""Everything of a network that depends on its task: one file per task, found through the registry."""
