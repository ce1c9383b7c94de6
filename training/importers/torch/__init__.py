"""Any torch module as a model folder: recorded, translated or exported, verified, published."""
