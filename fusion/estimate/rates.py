"""How fast a machine does what jobs do: a row of config/rates.yaml, or of a file like it."""

from functools import cache
from pathlib import Path

import yaml
from pydantic import Field

from fusion.estimate.work import Unknown, Work
from fusion.plan import LOADER, ROWS
from fusion.rows import Row, require


class NetworkRates(Row):
    """Examples a second of a forward pass alone, and of a backward pass alone, where all parameters train and where
    adapters do; decode: seconds of a core for a picture."""

    forward: float = Field(gt=0)
    backward: float = Field(gt=0)
    backward_adapter: float | None = Field(default=None, gt=0)
    decode: float = Field(default=0, ge=0)


class Rates(Row):
    """One machine. source: where the figures are from, measured or assumed.

    is_gpu: whether models run on a GPU, beside which the host decodes. cores: that a job has. start: seconds until a
    stage begins, imports and opening the model included. launch: seconds that a pass of a batch takes at least.
    memory: bytes a second that cross the memory of where models run. disk: bytes a second of files. process_mb:
    resident memory of an idle stage. merges: what merging by an algorithm takes beside `cat` of its inputs and `cp` of
    its output; spectral: those whose figure grows with the matrices' width.
    """

    source: str = Field(min_length=1)
    is_gpu: bool
    cores: int = Field(ge=1)
    start: float = Field(ge=0)
    launch: float = Field(ge=0)
    memory: float = Field(gt=0)
    disk: float = Field(gt=0)
    process_mb: float = Field(gt=0)
    networks: dict[str, NetworkRates]
    merges: dict[str, float]
    spectral: list[str] = []

    def seconds(self, work: Work, backbone: str | None, is_adapter: bool) -> float:
        """How long a job takes; Unknown where the network's rates are not."""
        network = 0.0
        if backbone and work.forwards + work.decoded:
            known = self._network(backbone)
            backward = known.backward_adapter if is_adapter and known.backward_adapter else known.backward
            network = max(work.forwards / known.forward + work.backwards / backward, work.batches * self.launch)
            decoding = work.decoded * known.decode
            network = max(network, decoding / self.cores) if self.is_gpu else network + decoding
        files = (work.read + work.written) / self.disk
        return self.start + network + work.traversed / self.memory + files + work.seconds

    def _network(self, backbone: str) -> NetworkRates:
        if backbone not in self.networks:
            raise Unknown(
                backbone, "passes a second of a backbone on this machine: give its `networks` one (config/rates.yaml)"
            )
        return self.networks[backbone]

    def host_bytes(self, work: Work) -> float:
        """Resident memory of the job's process."""
        return self.process_mb * 1e6 + work.host + (0 if self.is_gpu else work.device)


@cache
def read(device: str, file: Path = ROWS / "rates.yaml") -> Rates:
    """The rates of a device; ValueError naming the nearest one that the file has."""
    rows = yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER)
    require([device], rows, "device", str(file))
    return Rates(**rows[device])
