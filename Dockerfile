# Sluice's server with the bundled models; no torch, no compiler, a plain user.
#
#   docker build -t sluice .                              CPU
#   docker build -t sluice:gpu --build-arg RUNTIME=gpu .  CUDA (run it with --gpus all)
#   docker run -p 8000:8000 sluice
#
# Own models: docker run -p 8000:8000 -v ./models:/app/models:ro sluice

ARG BASE=docker.io/library/python:3.11-slim

FROM ${BASE} AS build
# cpu or gpu: onnxruntime and onnxruntime-gpu cannot live in one environment.
ARG RUNTIME=cpu
# Writes the list of what is installed (`make sbom` has the same version).
ARG CYCLONEDX=cyclonedx-bom==7.5.0
WORKDIR /src
RUN python3 -m venv /opt/sluice
# The dependencies first, so that a change of the code does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY service/__init__.py service/__init__.py
RUN case "${RUNTIME}" in cpu|gpu) ;; *) echo "RUNTIME is cpu or gpu, not '${RUNTIME}'" >&2; exit 1 ;; esac \
 && grep -v '^onnxruntime' constraints.txt > /tmp/constraints-gpu.txt \
 && if [ "${RUNTIME}" = gpu ]; then cp /tmp/constraints-gpu.txt constraints.txt; fi \
 && /opt/sluice/bin/pip install --no-cache-dir --constraint constraints.txt ".[${RUNTIME}]"
COPY service service
COPY sluice sluice
RUN /opt/sluice/bin/pip install --no-cache-dir --no-deps --force-reinstall . \
 && /opt/sluice/bin/pip uninstall --yes --quiet pip setuptools
RUN python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir "${CYCLONEDX}" \
 && /opt/tools/bin/cyclonedx-py environment --output-reproducible --output-file /opt/sluice/sbom.cdx.json /opt/sluice/bin/python
# Whoever runs the image can read the models, whatever the modes of the checkout.
COPY models /app/models
RUN chmod -R a+rX /app /opt/sluice

FROM ${BASE}
# SageMaker runs the image with the argument `serve`.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin sluice \
    && printf '#!/bin/sh\nexec sluice serve "$@"\n' > /usr/local/bin/serve && chmod 755 /usr/local/bin/serve
COPY --from=build /opt/sluice /opt/sluice
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/sluice/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SLUICE_HOST=0.0.0.0 \
    SLUICE_MODELS=/app/models
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('SLUICE_PORT') or 8000}/health/ready\", timeout=2)"]
CMD ["sluice", "serve"]
