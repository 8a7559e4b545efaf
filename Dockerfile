# One image for nodes and ServerApps: the command chooses (see docker-compose.yml).
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
RUN pip install --quiet '.[demo]'

COPY . .
RUN pip install --quiet --no-deps --force-reinstall .

WORKDIR /app
COPY examples examples
USER brokerfl
CMD ["brokerfl-node", "client:app", "--app-dir", "examples/digits"]
