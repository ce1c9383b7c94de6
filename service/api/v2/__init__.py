"""The Open Inference Protocol over HTTP, at /v2: what Triton's and KServe's clients speak. gRPC is not offered."""
