"""The gradient of `many_devices` under DistributedDataParallel; run by torchrun, rank 0 prints it."""

import json

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from docs.runs._regression import CLASSES, FEATURES, batch, start
from torch_ref.processes import close


def main() -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    model = nn.Linear(FEATURES, CLASSES, bias=False, dtype=torch.float64)
    model.load_state_dict({"weight": torch.tensor(start())})
    wrapped = DistributedDataParallel(model)
    inputs_BF, targets_B = (torch.tensor(part).chunk(processes)[rank] for part in batch())

    gradients = {}
    F.cross_entropy(wrapped(inputs_BF), targets_B, ignore_index=-1).backward()
    gradients["mean of means"] = model.weight.grad.tolist()

    model.zero_grad()
    count = (targets_B != -1).sum()
    dist.all_reduce(count)
    nats = F.cross_entropy(wrapped(inputs_BF), targets_B, ignore_index=-1, reduction="sum")
    (processes * nats / count).backward()  # DDP averages over processes: their number cancels
    gradients["mean over all"] = model.weight.grad.tolist()
    if rank == 0:
        print(json.dumps(gradients))
    del wrapped  # it would hold the process group past its end
    close()


if __name__ == "__main__":
    main()
