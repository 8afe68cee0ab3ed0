# syntax=docker/dockerfile:1
# docker build -t retro .
# docker build --build-arg EXTRAS=quantization,trackers,train,scienceworld -t retro .   # with an optional environment
# docker run --rm --gpus all -v "$PWD/runs:/home/retro/work/runs" retro run configs/quickstart.yaml
#
# torch's wheel brings the CUDA libraries; the base image only has to name the driver that they need.
FROM nvidia/cuda:13.0.1-base-ubuntu22.04

ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Ubuntu's own python3.11 is a release candidate.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends software-properties-common \
    && add-apt-repository --yes ppa:deadsnakes/ppa \
    && apt-get install --yes --no-install-recommends python3.11 python3.11-venv git wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 retro

USER retro
WORKDIR /home/retro/work
RUN python3.11 -m venv /home/retro/venv
ENV PATH=/home/retro/venv/bin:$PATH

# The dependencies first: they change seldom, and their layer is the large one.
COPY --chown=retro pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=retro retro/__init__.py retro/__init__.py
COPY --chown=retro configs/quickstart.yaml configs/quickstart.yaml
COPY --chown=retro data/quickstart data/quickstart
ARG EXTRAS=quantization,trackers,train
RUN pip install -c constraints.txt ".[$EXTRAS]" && pip uninstall --yes retro

COPY --chown=retro . .
RUN pip install -c constraints.txt --no-deps -e . && mkdir -p runs /home/retro/.cache/huggingface

ENTRYPOINT ["retro"]
CMD ["--help"]
