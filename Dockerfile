# An image of rayreid for Kubernetes (jobs/kuberay.yaml), and for every other place that runs containers.
#
#   docker build -t registry.example.com/rayreid:0.1.0 .
#   docker build -t rayreid:cpu --build-arg DEVICE=cpu --build-arg TORCH_INDEX=ADDRESS .
#
# DEVICE=cuda (about 9 GB) takes the build of torch for CUDA from the usual package index; a node needs only NVIDIA's
# driver. DEVICE=cpu needs the address of the index of torch's builds for CPUs, which pytorch.org names for "pip" and "CPU".
FROM python:3.11-slim

# KubeRay's probes use wget. Triton builds the launchers of a GPU's kernels with a C compiler when they first run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

# The packages go to /usr/local, not into a virtual environment: KubeRay starts Ray in a login shell, and that forgets PATH.
# What torch itself needs comes with the second installation: its index need not have the tested versions.
ARG DEVICE=cuda
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/rayreid
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY platform platform
COPY experiments experiments
RUN case "$DEVICE" in \
        cuda) extras=faiss,lmdb,map,onnx,optuna ;; \
        cpu) extras=faiss-cpu,lmdb,map,onnx,optuna \
            && pip install --no-cache-dir --no-deps -c constraints.txt \
                --index-url "${TORCH_INDEX:?is not set: DEVICE=cpu needs it}" torch torchvision ;; \
        *) echo "DEVICE=$DEVICE: say cuda or cpu" >&2 && exit 2 ;; \
    esac \
    && pip install --no-cache-dir -c constraints.txt ".[$extras]"

RUN useradd --uid 1000 --create-home rayreid
USER 1000:1000
WORKDIR /home/rayreid
CMD ["rayreid", "--help"]
