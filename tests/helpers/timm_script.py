"""A training script as a user of timm writes it: timm's own parts, in the order in which timm's train.py uses them.

Each epoch starts from a random state of its own, so that a resumed training can be compared with one that was never
interrupted.
"""

import argparse
import logging

import timm.utils as utils
import torch
from timm.data import create_dataset, create_loader
from timm.models import create_model, load_checkpoint, model_parameters, resume_checkpoint
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch.nn.functional import cross_entropy

parser = argparse.ArgumentParser()
parser.add_argument("data_dir")
parser.add_argument("--model")
parser.add_argument("--model-kwargs", nargs="*", default={}, action=utils.ParseKwargs)
parser.add_argument("--num-classes", type=int)
parser.add_argument("--input-size", type=int, nargs=3)
parser.add_argument("--batch-size", type=int)
parser.add_argument("--opt", default="sgd")
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--weight-decay", type=float, default=2e-5)
parser.add_argument("--layer-decay", type=float)
parser.add_argument("--lr", type=float)
parser.add_argument("--sched", default="cosine")
parser.add_argument("--epochs", type=int)
parser.add_argument("--warmup-epochs", type=int)
parser.add_argument("--clip-grad", type=float)
parser.add_argument("--model-ema", action="store_true")
parser.add_argument("--resume", default="")
parser.add_argument("--output")
parser.add_argument("--experiment")
parser.add_argument("--stop", type=int, help="stop after this many epochs of the schedule")


def main() -> None:
    args = parser.parse_args()
    if not logging.root.handlers:
        utils.setup_default_logging()
    utils.random_seed(0)
    model = create_model(args.model, num_classes=args.num_classes, in_chans=args.input_size[0], **args.model_kwargs)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    scaler = utils.NativeScaler("cpu")
    start = 0
    if args.resume:
        start = resume_checkpoint(model, args.resume, optimizer=optimizer, loss_scaler=scaler)
    ema = utils.ModelEmaV3(model, decay=0.5) if args.model_ema else None
    if ema and args.resume:
        load_checkpoint(ema.module, args.resume, use_ema=True)
    dataset = create_dataset("", root=args.data_dir, split="train", is_training=True)
    loader = create_loader(
        dataset,
        input_size=tuple(args.input_size),
        batch_size=args.batch_size,
        is_training=True,
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    folder = utils.get_outdir(args.output, args.experiment)
    saver = utils.CheckpointSaver(
        model, optimizer, args=args, model_ema=ema, amp_scaler=scaler, checkpoint_dir=folder, recovery_dir=folder
    )
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=len(loader))
    if start:
        scheduler.step(start)
    updates = start * len(loader)
    for epoch in range(start, args.stop or epochs):
        utils.random_seed(epoch)
        model.train()
        optimizer.zero_grad()
        for x, y in loader:
            loss = cross_entropy(model(x), y)
            scaler(loss, optimizer, clip_grad=args.clip_grad, parameters=model_parameters(model))
            updates += 1
            optimizer.zero_grad()
            if ema:
                ema.update(model, step=updates)
            scheduler.step_update(num_updates=updates, metric=loss.item())
        logging.getLogger("train").info("Train: %d Loss: %r", epoch, loss.item())
        saver.save_checkpoint(epoch, metric=-loss.item())
        scheduler.step(epoch + 1, -loss.item())


if __name__ == "__main__":
    main()
