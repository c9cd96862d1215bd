# One image for every role; the command says which. CPU back end (see compose.yaml about Macs).
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends libopenblas0-pthread \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mlx-farm
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[cpu]'

RUN useradd --create-home farm && mkdir -p /home/farm/.cache/huggingface /home/farm/.mlx-farm/files && chown -R farm /home/farm
USER farm
WORKDIR /home/farm
ENTRYPOINT ["mlx-farm"]
CMD ["serve", "--host", "0.0.0.0"]
