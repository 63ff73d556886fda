# The server and its embedded model, without compiler, pip or network at run time. TORCH and PIP_ARGS say which torch
# and where from, as in the Makefile: "torch==2.13.0+cpu" is the CPU build, gigabytes smaller.
ARG BASE=docker.io/library/python:3.11-slim

# Dependencies: changes with pyproject.toml, and torch only with its own version.
FROM ${BASE} AS dependencies
ARG TORCH="torch==2.13.0"
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
RUN pip --python /opt/venv/bin/python install --no-compile ${PIP_ARGS} "${TORCH}"
COPY pyproject.toml /src/
RUN python -c 'import tomllib; print(*tomllib.load(open("/src/pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > /src/requirements.txt \
    && pip --python /opt/venv/bin/python install --no-compile -r /src/requirements.txt
# Away with what only builds, tests and downloads need. The import shows that the rest still works, and leaves the
# bytecode of what a server loads: on a read-only root there will be no other.
RUN pip --python /opt/venv/bin/python uninstall --yes hf-xet huggingface-hub setuptools \
    && cd /opt/venv/lib/python3*/site-packages \
    && rm -rf torch/include torch/share torch/test torch/lib/*.a torch/lib/*_test.so \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find numpy sympy networkx -type d -name tests -prune -exec rm -rf {} + \
    && /opt/venv/bin/python -c 'import torch, numpy, psutil, safetensors.torch, tokenizers, msgspec, fastapi, fastapi_offline, pydantic_settings, \
        prometheus_client, typer, rich.console, uvicorn, uvicorn.protocols.http.httptools_impl, uvloop'

# The application: a plain install of its wheel, unpacked under a root of its own. The compiler is for its kernels, whose
# OpenMP and C++ libraries are those that torch brings or needs.
FROM dependencies AS application
RUN apt-get update && apt-get install --yes --no-install-recommends g++
COPY . /src
RUN pip wheel --no-deps --wheel-dir /wheels /src && test -n "$(find /wheels -name '*linux*')" \
    && pip --python /opt/venv/bin/python install --no-deps --no-compile --root /application /wheels/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash /application/opt/venv/lib

FROM ${BASE}
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=application /application /
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
ENTRYPOINT ["verbatim"]
CMD ["serve", "--host", "0.0.0.0"]
