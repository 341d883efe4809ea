"""How long a step and a job take: bytes over a bandwidth, operations over a rate, and fixed overheads."""

from dataclasses import dataclass

from tools.simulation.shapes import WEIGHT_BYTES, entry_bytes, multiplied_parameters
from zipage.engine_messages import CompressionJob, Job
from zipage.models.config import ModelConfig

# Assumed: three fifths of the peak of bfloat16 without sparsity.
OPERATIONS_PER_SECOND = 6e14
JOB_OVERHEAD = 400e-6


@dataclass(frozen=True)
class CostModel:
    """What a step, a job and a message cost.

    Attributes:
        weight_bytes: read by every step.
        entry_bytes: keys and values of one resident entry, all layers and KV heads.
        block_size: entries a block.
        bandwidth: device memory, bytes read and written per second.
        step_overhead: seconds of a step beyond memory and arithmetic.
        token_seconds: arithmetic of one token; what counts of a step is the longer of this and reading the weights.
        job_overhead: seconds of a job beyond memory.
        key_reads: times that a compression reads the keys of all resident entries for their scores.
        host_bandwidth: between device and host memory, bytes per second.
        message_latency: seconds of one message between two processes.
        scheduling_seconds: scheduler's CPU time for one request of one step, before the step leaves.
        step_slowdown: factor on a step's time while a job runs beside it, at least 1.
        job_slowdown: factor on a job's time while a step runs beside it, at least 1.
    """

    weight_bytes: float
    entry_bytes: float
    block_size: int
    token_seconds: float
    # Where nothing else is said: measured on one H200, with CUDA MPS and a low priority for the jobs.
    bandwidth: float = 4.3e12
    message_latency: float = 26e-6
    step_slowdown: float = 1.2
    job_slowdown: float = 348 / 332
    scheduling_seconds: float = 3.5e-6
    # Assumed.
    step_overhead: float = 400e-6
    job_overhead: float = JOB_OVERHEAD
    key_reads: float = 2.0
    host_bandwidth: float = 50e9

    def step_seconds(self, num_tokens: int, num_entries: int) -> float:
        """Time of a step alone on the device.

        Args:
            num_tokens: computed by it.
            num_entries: resident entries that its attention reads, each request's once.
        """
        weights = self.weight_bytes / self.bandwidth
        attention = num_entries * self.entry_bytes / self.bandwidth
        return self.step_overhead + max(weights, num_tokens * self.token_seconds) + attention

    def job_seconds(self, job: Job) -> float:
        """Time of a job alone on the device.

        A compression reads the keys of all entries, and reads and writes keys and values of those that it keeps. A swap
        copies whole blocks.
        """
        if isinstance(job, CompressionJob):
            scoring = self.key_reads * job.num_entries * self.entry_bytes / 2
            compaction = 2 * job.keep * self.entry_bytes
            return self.job_overhead + (scoring + compaction) / self.bandwidth
        copied = len(job.host_blocks) * self.block_size * self.entry_bytes
        return self.job_overhead + copied / self.host_bandwidth


def cost_model(model: ModelConfig, block_size: int, job_overhead: float) -> CostModel:
    """The costs of a model in bfloat16 on one H200, with blocks of `block_size` entries."""
    parameters = multiplied_parameters(model)
    return CostModel(
        weight_bytes=parameters * WEIGHT_BYTES,
        entry_bytes=entry_bytes(model),
        block_size=block_size,
        token_seconds=2 * parameters / OPERATIONS_PER_SECOND,
        job_overhead=job_overhead,
    )
