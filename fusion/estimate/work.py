"""What one job does, in units that do not depend on a machine."""

from dataclasses import dataclass, replace

SUMS = ("forwards", "backwards", "batches", "decoded", "traversed", "read", "written", "seconds")
PEAKS = ("host", "device")  # of which the larger counts


class Unknown(ValueError):
    """A fact or a rate that no row has. name: of what; what: the fact, and where to give it."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name, self.what = name, what


@dataclass(frozen=True)
class Work:
    """What is computed, read and written, and the most memory that it takes beyond an idle process.

    forwards, backwards: passes of the network, one an example; batches: of such passes, each of which launches kernels
    anew. decoded: pictures. traversed: bytes that cross the memory of where models run, beside the network: merging,
    optimizers, masks. read, written: bytes of files. host, device: bytes of memory, of the host and of where models
    run. seconds: of one core of the host, for what is counted as such. unknown: what no row says, as (name, what), and
    the figures leave out.
    """

    forwards: float = 0
    backwards: float = 0
    batches: float = 0
    decoded: float = 0
    traversed: float = 0
    read: float = 0
    written: float = 0
    host: float = 0
    device: float = 0
    seconds: float = 0
    unknown: frozenset[tuple[str, str]] = frozenset()

    def __add__(self, other: "Work") -> "Work":
        """Both, one after the other."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in SUMS}
        peaks = {name: max(getattr(self, name), getattr(other, name)) for name in PEAKS}
        return Work(**sums, **peaks, unknown=self.unknown | other.unknown)

    def times(self, count: int) -> "Work":
        """As many jobs of this kind."""
        return replace(self, **{name: count * getattr(self, name) for name in SUMS})
