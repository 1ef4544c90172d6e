# docker build -t sophon-bench .
# docker run --rm -v "$PWD:/work" sophon-bench run --defense sophon-ice --attack @smoke
#
# torch's ordinary wheels bring CUDA, so that this image runs on a GPU too (docker run --gpus all). For a base with
# torch or another CUDA: --build-arg BASE=pytorch/pytorch:TAG or nvidia/cuda:TAG, with Python 3.11 or later and pip in it.
# For the smaller wheels without CUDA: --build-arg PIP_EXTRA_INDEX_URL=URL, torch's index of CPU wheels.
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG PIP_EXTRA_INDEX_URL
ARG PIP_BREAK_SYSTEM_PACKAGES=1

WORKDIR /opt/sophon-bench
COPY . .
# hadolint ignore=DL3013
RUN python3 -m pip install --no-cache-dir '.[all]'

# Records and models stay in the mounted folder.
ENV SOPHON_BENCH_STORE=/work/store
WORKDIR /work
ENTRYPOINT ["sophon-bench"]
CMD ["--help"]
