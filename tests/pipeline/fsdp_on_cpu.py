"""`scripts/train_sft.py` with FSDP on a CPU, which accelerate does not allow: a test of what it does on GPUs.

accelerate takes every CPU launch for plain data parallelism. Told otherwise, its FSDP2 runs on gloo as it is.
"""

from __future__ import annotations

from typing import Any

from torch import distributed
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh

from retro.cli import stage_main
from retro.cli.logs import quieten

if __name__ == "__main__":
    quieten()  # before accelerate is imported: older versions of it import transformers
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    start, fully_shard, sharded = AcceleratorState.__init__, fsdp.fully_shard, []

    def start_with_plugin(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        start(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin

    def fully_shard_on_cpu(module: Any, **options: Any) -> Any:
        sharded.append(module)
        return fully_shard(module, **options | {"mesh": init_device_mesh("cpu", (distributed.get_world_size(),))})

    AcceleratorState.__init__ = start_with_plugin  # type: ignore[method-assign]
    AcceleratorState.distributed_type = property(  # type: ignore[assignment]
        lambda state: DistributedType.FSDP, lambda state, value: None
    )
    fsdp.fully_shard = fully_shard_on_cpu  # type: ignore[assignment]
    stage_main("sft")
    assert sharded, "accelerate has sharded nothing"
