"""Writes ``tests/fixtures/lightning2.6_ckpt``: what a run of Lightning leaves, and its model.

Run where pytorch-lightning 2.6 is installed: ``python write_lightning_fixture.py FOLDER``.
"""

import json
import sys
from pathlib import Path

import pytorch_lightning as lightning
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    hidden_size=8,
    intermediate_size=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=12,
    tie_word_embeddings=False,
    architectures=["LlamaForCausalLM"],
)


class Module(lightning.LightningModule):
    def __init__(self, rate: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = LlamaForCausalLM(CONFIG)

    def training_step(self, batch, _):
        loss = self.model(input_ids=batch, labels=batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def main(folder: Path) -> None:
    torch.manual_seed(0)
    module = Module()
    saved = lightning.callbacks.ModelCheckpoint(folder, "last", monitor="loss")
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, callbacks=[saved], logger=False
    )
    rows = [torch.randint(0, CONFIG.vocab_size, (6,)) for _ in range(8)]
    trainer.fit(module, DataLoader(rows, batch_size=4))
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict(), indent=1))
    save_file(dict(module.model.state_dict()), folder / "reference.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
