# syntax=docker/dockerfile:1
ARG PYTHON_IMAGE=python:3.14-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
# The lock's versions and hashes; packages come from wherever pip is set up to look.
RUN python3 -m venv /uv && /uv/bin/pip install --quiet 'uv>=0.13.9,<0.14'
RUN python3 -m venv --without-pip /opt/intervaljob
COPY pyproject.toml uv.lock ./
RUN /uv/bin/uv export --quiet --frozen --no-dev --extra operator --no-emit-project --output-file requirements.txt \
    && /uv/bin/pip --python /opt/intervaljob install --quiet --no-compile --require-hashes --requirement requirements.txt
COPY . .
RUN /uv/bin/pip wheel --quiet --no-deps --wheel-dir /wheel . \
    && /uv/bin/pip --python /opt/intervaljob install --quiet --no-compile --no-deps /wheel/*.whl
# Bytecode of what runs, and no more: half of the kubernetes client's is of what nobody imports.
RUN set -e; for verb in operator worker migrate task recover settings; do /opt/intervaljob/bin/intervaljob $verb --help; done > /dev/null

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="intervaljob" \
      org.opencontainers.image.description="Recurring work on Kubernetes that survives the death of its workers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /opt/intervaljob /opt/intervaljob
# Handlers that are copied to the working directory are found. The file system may be read-only.
ENV PATH=/opt/intervaljob/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 65532:65532
ENTRYPOINT ["intervaljob"]
