"""What two processes record in other libraries' loops: ``torchrun --nproc-per-node 2 tests/two_adapters.py FOLDER``."""

from __future__ import annotations

import os
import sys
import warnings

import torch
from adapter_page import Module, examples, names
from lightning.pytorch import Trainer as LightningTrainer
from plain_twin import BATCH, EPOCHS, PROBES, Model, Samples, optimizer_of, schedule_of
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from stabilitylab.adapters import huggingface, lightning


class InOrder(Trainer):
    """Takes the samples in their order."""

    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def main(folder: str) -> None:
    """Run the examples of the page for many processes, and both adapters."""
    os.chdir(folder)
    torch.distributed.init_process_group("gloo")
    given = {"mesh": init_device_mesh("cpu", (2,))}
    rank = torch.distributed.get_rank()
    for title in ("DistributedDataParallel", "FSDP2"):
        exec(examples()[title], names(rank, 2) | given)

    options = {"probes": PROBES, "flush_steps": 1}  # each rank says what it saw before the end
    arguments = TrainingArguments(
        "out", use_cpu=True, ddp_backend="gloo", per_device_train_batch_size=BATCH, num_train_epochs=EPOCHS,
        report_to="none", save_strategy="no", disable_tqdm=True, max_grad_norm=0.2, dataloader_pin_memory=False,
    )  # fmt: skip
    model = Model()
    optimizer = optimizer_of(model)
    callback = huggingface.RecorderCallback("runs/trainer", **options)
    both = (optimizer, schedule_of(optimizer))
    InOrder(model, arguments, train_dataset=Samples(), optimizers=both, callbacks=[callback]).train()

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = LightningTrainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=EPOCHS, gradient_clip_val=0.2,
        enable_checkpointing=False, use_distributed_sampler=False,
        callbacks=[lightning.RecorderCallback("runs/lightning", **options)], **quiet,
    )  # fmt: skip
    trainer.fit(Module(), names(rank, 2)["loader"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
