# An image with the command fractatlas: docs/howto/container.md.
FROM python:3.12-slim-bookworm
# uv's name of a build of PyTorch: cpu, or for an NVIDIA GPU cu130 or another version of CUDA.
ARG TORCH=cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
WORKDIR /opt/fractatlas
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY docker/install.sh docker/
COPY conf conf/
COPY fractatlas fractatlas/
RUN docker/install.sh "$TORCH"
# Runs, data and configuration folders are mounted below /work, which is the working directory.
RUN useradd --create-home --uid 1000 fractatlas && install --directory --owner fractatlas /work
USER fractatlas
WORKDIR /work
ENV FRACATLAS_ROOT=/work/data/FracAtlas FRACATLAS_WEIGHTS=/work/weights MPLCONFIGDIR=/tmp/matplotlib
EXPOSE 8000
ENTRYPOINT ["fractatlas"]
CMD ["--help"]
