# HAProxy with socket-proxy.cfg: the part of the Docker API that webserver and daemon can use. See
# docs/decisions/0009-docker-socket.md.
ARG PROXY_BASE_IMAGE=debian:bookworm-slim
FROM ${PROXY_BASE_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
COPY docker/socket-proxy.cfg /etc/haproxy/haproxy.cfg
# Debian's package creates this user and chooses its number.
# hadolint ignore=DL3066
USER haproxy
CMD ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
