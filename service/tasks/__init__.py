"""What instances mean to a model: JSON values ↔ named tensors, one file per task."""
