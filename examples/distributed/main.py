"""Data-parallel training on the CPUs of several nodes; docs/distributed.md says how to submit it."""

import mlxpy
import submitit
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


@mlxpy.launch(config_path="./configs")
def train(ctx: mlxpy.Context) -> None:
    env = submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    dist.init_process_group(backend="gloo")

    torch.manual_seed(ctx.config.seed)  # every rank begins with the same weights
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=ctx.config.lr)
    start = 0
    try:  # every rank loads; rank 0 alone saves
        state = ctx.logger.load_checkpoint()
        model.module.load_state_dict(state["model"])
        start = state["epoch"] + 1
    except FileNotFoundError:
        pass
    dist.barrier()  # no rank saves a newer one while another still loads
    print(f"rank {env.rank} of {env.world_size} starts from epoch {start}", flush=True)

    for epoch in range(start, ctx.config.num_epoch):
        # each rank has its own part of the data
        data = torch.Generator().manual_seed(epoch * env.world_size + env.rank)
        inputs = torch.randn(64, 8, generator=data)
        loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # averages the gradients of all ranks
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        ctx.logger.log_metrics({"epoch": epoch, "loss": mean.item() / env.world_size}, log_name="train")
        ctx.logger.log_checkpoint({"epoch": epoch, "model": model.module.state_dict()})
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    train()
