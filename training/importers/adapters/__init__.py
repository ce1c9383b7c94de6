"""What a model of another library is served as: one adapter per task, from its options to the manifest."""
