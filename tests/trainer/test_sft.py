"""TRL's data under our loss: what is learnt of them, and that it is the run of ``fit`` on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig

from bayes_adapters import AdapterGuide, AdapterModel, Batch
from bayes_adapters.errors import ConfigError
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.systems import build
from bayes_adapters.trainer import BayesTrainer, SFTData, _checks, sft_data
from bayes_adapters.training import batches, fit
from tests.language.parts import tokenizer
from tests.refusals import refuses

disable_progress_bar()
ROWS = [{"prompt": "Answer:", "completion": c} for c in (" A", " B", " A B", " B A B", " A A")]
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}[END]{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def words() -> PreTrainedTokenizerFast:
    return tokenizer(pad_token="[PAD]")


def net() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, pad_token_id=1, **sizes)).eval()


def arguments(folder: Path, **options: Any) -> SFTConfig:
    steps = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 1e-2, "seed": 7}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "logging_steps": 1}
    rest = {"lr_scheduler_type": "constant", "activation_checkpointing": False, "save_strategy": "no"}
    return SFTConfig(str(folder), **(steps | quiet | rest | options))


def blob(backbone: Any, size: int) -> tuple[AdapterModel, AdapterGuide]:
    torch.manual_seed(5)
    options = {"targets": ["q_proj", "v_proj"], "rank": 2, "head": LanguageModelHead(), "num_data": size}
    return build("blob", backbone, NextToken(16), **options)


def prepared(folder: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> tuple[Any, SFTConfig, SFTData]:
    backbone, args = net(), arguments(folder, **options)
    return backbone, args, sft_data(backbone, words(), args, Dataset.from_list(rows))


def test_it_is_the_run_of_fit_on_what_trl_made(tmp_path: Path) -> None:
    """Losses, the KL of the data set counted once, and weights; the backbone is as it was."""
    backbone, args, data = prepared(tmp_path)
    assert "forward" not in vars(backbone)
    assert not any(p.is_meta for p in backbone.parameters())
    items = list(data.train_dataset)
    assert items[0]["labels"] == [-100, -100, 8, 2], "the completion and the end of the text"
    trainer = BayesTrainer(*blob(backbone, 5), args, **data._asdict(), kl_weight=0.1)
    trainer.train()

    def collate(rows: list[Any]) -> Batch:
        found = data.data_collator(rows)
        labels = found.pop("labels")
        return Batch(found, labels)

    model, guide = blob(net(), 5)
    result = fit(model, guide, batches(items, 2, collate, seed=7), epochs=2, kl_weight=0.1, seed=7, progress=False,
                 optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0), clip_norm=1.0)  # fmt: skip
    steps = [log for log in trainer.state.log_history if "loss" in log]
    for name in ("loss", "nll", "kl"):
        values = torch.tensor([log[name] for log in steps]).reshape(2, 3)
        epochs = (values @ torch.tensor([2.0, 2.0, 1.0]) / 5).tolist()
        assert epochs == pytest.approx([log[name] for log in result.history], abs=1e-5), name
    ours = dict([*model.trainable_parameters().items(), *guide.named_parameters()])
    theirs = dict([*trainer.elbo.model.trainable_parameters().items(), *trainer.elbo.guide.named_parameters()])
    assert max(float((value - theirs[name]).detach().abs().max()) for name, value in ours.items()) < 1e-5


def test_a_checkpoint_is_the_adapters_and_goes_on(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    backbone, args, data = prepared(tmp_path, max_steps=4, **saving)
    whole = BayesTrainer(*blob(backbone, 5), args, **data._asdict())
    whole.train()
    expected = {name: value.clone() for name, value in whole.model.state_dict().items()}
    held = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert held.keys() == expected.keys()
    assert not [name for name in held if ".backbone." in name and "lora" not in name]
    assert (tmp_path / "checkpoint-2" / "tokenizer.json").exists()
    backbone, args, data = prepared(tmp_path / "again", max_steps=4)
    again = BayesTrainer(*blob(backbone, 5), args, **data._asdict())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())


def test_a_stream_that_is_cut_in_rows_trains(tmp_path: Path) -> None:
    options = {"packing": True, "packing_strategy": "wrapped", "max_length": 6, "num_train_epochs": 1}
    backbone, args, data = prepared(tmp_path, **options)
    assert len(data.train_dataset) == 4  # 21 tokens, six at a time
    BayesTrainer(*blob(backbone, 4), args, **data._asdict()).train()


def test_only_the_assistants_words_are_learnt(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "sky blue:"}, {"role": "assistant", "content": " A"}]
    its = words()
    its.chat_template = CHAT
    rows, args = Dataset.from_list([{"messages": said}]), arguments(tmp_path, assistant_only_loss=True)
    (row,) = sft_data(net(), its, args, rows).train_dataset
    assert [i for i in row["labels"] if i != -100] == [8, 2]
    assert len(row["labels"]) == 5


def test_what_would_be_another_loss_is_refused_by_name(tmp_path: Path) -> None:
    refused: dict[str, dict[str, Any]] = {
        "packing": {"packing": True},
        "padding_free": {"padding_free": True},
        "loss_type='dft'": {"loss_type": "dft"},
        "activation_checkpointing": {"activation_checkpointing": True},
        "activation_offloading": {"activation_offloading": True},
        "router_aux_loss_coef": {"router_aux_loss_coef": 0.1},
    }
    for name, options in refused.items():
        args = arguments(tmp_path, **options)
        with refuses(ConfigError, name):
            sft_data(net(), words(), args, Dataset.from_list(ROWS))
        with refuses(ConfigError, name):
            BayesTrainer(*blob(net(), 5), args)
    with refuses(ConfigError, "chat_template_path", 17, 16):
        _checks.check_vocabulary(17, net())
