# One image for nodes and ServerApps: the command chooses (see docker-compose.yml).
#
# The demo's has scikit-learn and the examples. For an app of your own, leave them out, and add it on top:
#
#     docker build --build-arg EXTRAS=numpy --tag brokerfl .
#
#     FROM brokerfl
#     COPY app /app
#     CMD ["brokerfl-node", "client:app"]
FROM python:3.12-slim

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# What a node must not forget. A new volume mounted there belongs to the user, as the directory does.
ENV BROKERFL_STATE_DIR=/var/lib/brokerfl
# Its number is that of the owner of the password in docker-compose.yml.
RUN useradd --uid 1000 --create-home brokerfl && install --directory --owner brokerfl "$BROKERFL_STATE_DIR"

# The dependencies first: this layer is made anew only when setup.cfg or the version changes.
WORKDIR /src
COPY setup.cfg setup.py ./
COPY brokerfl/__init__.py brokerfl/
ARG EXTRAS=demo
RUN pip install --quiet ".[$EXTRAS]"

COPY . .
RUN pip install --quiet --no-deps --force-reinstall .

WORKDIR /app
COPY examples examples
USER brokerfl
# Of the node that BROKERFL_NODE_NAME names. Only 1 counts: it is lost or stuck. Otherwise nothing is known of it, because
# Redis is away, or this is no named node.
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s --retries=5 CMD brokerfl node-health; [ $? -ne 1 ]
CMD ["brokerfl-node", "client:app", "--app-dir", "examples/digits"]
