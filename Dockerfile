# landscape with CUDA: docker build -t landscape . && docker run --gpus all -v "$PWD/studies:/studies" landscape check
FROM python:3.12-slim
RUN useradd --create-home landscape
WORKDIR /opt/landscape
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY landscape landscape
# On Linux the wheel of torch brings CUDA's libraries with it; the driver is the host's.
RUN pip install --no-cache-dir -c constraints.txt .
USER landscape
WORKDIR /studies
ENTRYPOINT ["landscape"]
CMD ["--help"]
