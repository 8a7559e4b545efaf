"""`brokerfl export RUN --arrays`: the latest model of a run as a file. Owns what is said of it, and of a file there."""

from pathlib import Path

from brokerfl.broker.connection import Connection
from brokerfl.cli.tables import show_text
from brokerfl.common import BrokerflError, ConfigError
from brokerfl.common.npz import write_npz
from brokerfl.view.model import read_model
from brokerfl.wire.run import Run


def export_model(connection: Connection, run: Run, path: Path, *, force: bool) -> None:
    """Write the latest model in the record of a run to a file, and say where it comes from.

    Raises:
        ConfigError: the file exists, and ``force`` was not given; or it cannot be written.
        RecordMissing: the run has recorded no model.
        BrokerflError: the run is sealed, or an array has a dtype that no .npz file holds.
    """
    run_id = run.run_id
    if run.is_sealed:
        raise BrokerflError(f"run {run_id} is sealed: only its ServerApp can read what it recorded")
    if path.exists() and not force:
        raise ConfigError(f"--arrays: {path} exists; --force replaces it")
    model = read_model(connection, run_id)
    try:
        write_npz(path, model.arrays)
    except ValueError as error:
        raise BrokerflError(f"the model of run {run_id} cannot be exported: {error}") from None
    except OSError as error:
        raise ConfigError(f"--arrays: {path} cannot be written: {error.strerror or error}") from None
    count = "1 array" if len(model.arrays) == 1 else f"{len(model.arrays)} arrays"
    show_text(f"{path}: the model of {model.origin}, {count}")
