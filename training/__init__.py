"""Sluice's training: learns recurrent networks from a recipe and publishes them as model folders."""

import os

# onnxruntime 1.29 and later report to their maker and leave an identifier under ~/.cache, from the import on, unless told
# not to before it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
