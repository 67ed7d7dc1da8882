"""The tutorial's program: a training loop that goes on where its last checkpoint was."""

import time

from core import DataLoader, OneHiddenLayer

import mlxpy


def train_epoch(dataloader: DataLoader, model: OneHiddenLayer, lr: float) -> float:
    losses = [model.step(x, y, lr) for x, y in dataloader]
    return sum(losses) / len(losses)


@mlxpy.launch(config_path="./configs")
def train(ctx: mlxpy.Context) -> None:
    cfg = ctx.config
    logger = ctx.logger

    # Try loading from the checkpoint
    try:
        checkpoint = logger.load_checkpoint()
        start_epoch = checkpoint["epoch"] + 1
        model = checkpoint["model"]
    except:
        start_epoch = 0
        model = OneHiddenLayer(cfg.data.d_int, cfg.model.num_units)

    dataloader = DataLoader(cfg.data.d_int, cfg.data.device)

    # Training
    print(f"Starting from epoch: {start_epoch}")

    for epoch in range(start_epoch, cfg.num_epoch):
        train_err = train_epoch(dataloader, model, cfg.optimizer.lr)
        time.sleep(cfg.seconds_per_epoch)  # a real epoch takes longer than this toy's

        logger.log_metrics({"loss": train_err, "epoch": epoch}, log_name="train")

        logger.log_checkpoint({"model": model, "epoch": epoch}, log_name="last_ckpt")

    print(f"Completed training with learning rate: {cfg.optimizer.lr}")


if __name__ == "__main__":
    train()
