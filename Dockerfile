# InferenceGym: the environments as OpenEnv services, and the gateway. `docker build -t inferencegym .`, then `docker run -p 7860:7860 inferencegym`;
# `docker run -p 7860:7860 inferencegym pagedkv` for the paging environment; `docker run -p 8000:8000 -e LLM_RUNTIME_API_KEY=...
# inferencegym serve --host 0.0.0.0` for the gateway. The whole product: docker-compose.yml.
FROM python:3.11-slim AS builder

WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /opt/inferencegym \
    && /opt/inferencegym/bin/pip install --no-cache-dir -c constraints.txt ".[openenv,serve,otel]"

# Compile the kernels of both families and of the mock engine once, while the image is built. Images keep whole seconds of a file's time,
# Numba's cache compares all of it: without the touch every start would compile anew.
ENV NUMBA_CACHE_DIR=/opt/numba
RUN find /opt/inferencegym/lib/python3.11/site-packages/inferencegym -name "*.py" -exec touch -d @1700000000 {} + \
    && /opt/inferencegym/bin/python -m compileall -q -f /opt/inferencegym/lib/python3.11/site-packages/inferencegym \
    && /opt/inferencegym/bin/python -c "from inferencegym.envs.openenv.baseline import suite; suite('llmserve', ['static_workload'], 0); suite('pagedkv', ['easy'], 0)" \
    && /opt/inferencegym/bin/python -c "from inferencegym.runtime.backends.mock import MockBackend; MockBackend().engine.advance(0)" \
    && chmod -R a+rX /opt/numba

FROM python:3.11-slim

COPY --from=builder /opt/inferencegym /opt/inferencegym
COPY --from=builder /opt/numba /opt/numba
COPY --chmod=0755 deploy/entrypoint.sh /usr/local/bin/inferencegym-env
# Numba writes beside what it reads, and the root may be read-only: the entry point gives it a copy under /tmp.
ENV PATH=/opt/inferencegym/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GRADIO_ANALYTICS_ENABLED=False
USER 65532:65532
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=40s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
ENTRYPOINT ["inferencegym-env"]
CMD ["llmserve"]
