"""What the scheduler is asked about jobs that have left no outcome yet, and whether one can still be expected."""

import asyncio
import time
from collections.abc import Collection, Mapping

from snakemake_executor_plugin_forkserver.report import describe

from .batches import Submitted
from .life import Patience
from .settings import ExecutorSettings
from .slurm import NoAnswer, State
from .submissions import Submissions
from .voice import Voice

LOCAL = 2.0  # seconds after which a file of this machine is seen


class Polling:
    """One query for all jobs, every `submitit-poll` seconds; latency: seconds that a network file system may need."""

    def __init__(self, submissions: Submissions, settings: ExecutorSettings, latency: float, voice: Voice) -> None:
        self._submissions, self._backend, self._voice = submissions, submissions.backend, voice
        self._every = min(settings.poll, self._backend.longest_poll)
        self._patience = Patience(latency, settings.patience) if self._backend.is_slow else Patience(LOCAL, LOCAL)
        self._polled = 0.0
        self.states: Mapping[str, State] = {}  # of the last answer, by id

    async def ask(self, ids: Collection[str]) -> Mapping[str, State] | None:
        """The states of those jobs; None where it is not time to ask yet, or nobody answers."""
        if not ids or time.monotonic() - self._polled < self._every or self._submissions.cancelled:
            return None
        try:
            self.states = await asyncio.to_thread(self._backend.states, ids)
        except NoAnswer as error:
            self._backend.tell(str(error))
            return None
        finally:
            self._polled = time.monotonic()
        self._backend.tell("")
        await asyncio.to_thread(self._submissions.tidy)
        return self.states

    async def lives(self, submitted: Submitted, states: Mapping[str, State]) -> bool:
        """Whether an outcome of the job can still be expected."""
        state, now = states.get(submitted.id), time.monotonic()
        submitted.life.look(state, now)
        if state is not None and state.hopeless:
            return state.not_launched and await asyncio.to_thread(self._revive, submitted)
        if not submitted.life.is_due(state, self._patience, now):
            return True
        return not await asyncio.to_thread(self._submissions.is_gone, submitted, state)

    def _revive(self, submitted: Submitted) -> bool:
        """Lets a job start again that its node could not launch, and says so; False if that happened too often."""
        revived = self._backend.revive(submitted.id)
        if revived:
            text = f"{describe(submitted.job)} (job {submitted.id}) could not be launched on its node"
            self._voice.once(f"{text}; it is released again, for another node where there is one")
        return revived
