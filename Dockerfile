# Holdfast as a container: serves when no command is given, and runs any other (`docker run IMAGE backup /var/www`).
# docs/howto/run-in-a-container.md says how to use it, and which users and capabilities suffice.
#
# BASE may be any image with python3 (3.11 or later) and pip. Both stages take it: the environment points to its Python.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /build
# pip works on the environment from outside, since not every Python brings ensurepip.
COPY requirements.txt ./
RUN python3 -m venv --without-pip /opt/holdfast \
 && python3 -m pip --python /opt/holdfast install --no-cache-dir --disable-pip-version-check \
        --require-hashes --requirement requirements.txt
COPY LICENSE README.md pyproject.toml ./
COPY src ./src
RUN python3 -m pip --python /opt/holdfast install --no-cache-dir --disable-pip-version-check --no-deps .

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Holdfast" \
      org.opencontainers.image.description="Backs Docker volumes and images up into one bucket, and brings them back" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=build /opt/holdfast /opt/holdfast
# Open to every user, for --user. No VOLUME: each container would leave one behind.
RUN mkdir -p /usr/local/bin /var/cache/holdfast /var/lib/holdfast \
 && ln -s /opt/holdfast/bin/holdfast /usr/local/bin/holdfast \
 && chmod 1777 /var/cache/holdfast /var/lib/holdfast

# The cache is in /var/cache/holdfast, and the embedded store, for want of a bucket, in /var/lib/holdfast/store.
#
# The settings that are used most, all of them optional (docs/reference/configuration.md has the others):
#   HOLDFAST_STORE            the bucket's URL, s3://BUCKET/PREFIX; or, as before, S3_BUCKET_NAME
#   HOLDFAST_LAYOUT           registry, or tarball
#   HOLDFAST_PERSIST_LISTEN   where requests are taken; the health check asks there, too
#   HOLDFAST_PERSIST_VERBS    get-saves, or put-saves
#   HOLDFAST_PERSIST_ROOTS    the paths that may be saved and restored, with ":" between them; else all mounted volumes
#   HOLDFAST_ENGINE_LISTEN    :22375, and Docker's socket mounted: serves docker pull. An empty HOLDFAST_PERSIST_LISTEN
#                             then leaves the other out
#   HOLDFAST_PERSIST_TOKEN    what a request must bring; better HOLDFAST_PERSIST_TOKEN_FILE, the file that holds it
#   COMPRESS                  true, or false
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3, and all that AWS's tools read
ENV HOLDFAST_PERSIST_LISTEN=:80 \
    XDG_CACHE_HOME=/var/cache \
    XDG_DATA_HOME=/var/lib
EXPOSE 80 22375

HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/opt/holdfast/bin/python3", "-I", "-c", "\
import http.client, os, sys; \
listen = os.environ.get('HOLDFAST_PERSIST_LISTEN') or os.environ.get('HOLDFAST_ENGINE_LISTEN', ''); \
host, _, port = listen.rpartition(':'); \
server = http.client.HTTPConnection(host.strip('[]') or 'localhost', int(port), timeout=4); \
server.request('GET', '/-/health'); \
sys.exit(server.getresponse().status != 200)"]

ENTRYPOINT ["holdfast"]
CMD ["serve"]
