"""Names and values that other programs use for the settings of gm-train, for messages about unknown ones."""

#: Names that people know from PyTorch, Lightning and Hugging Face, and the settings that mean the same here.
SETTINGS = {
    "run.dir": "output_dir out_dir out save_dir default_root_dir log_dir ckpt_path resume resume_from_checkpoint",
    "run.seed": "random_seed random_state",
    "data.store": "dataset data_path data_dir train_file train_data",
    "data.lanes, data.rows_per_lane": "batch_size global_batch_size train_batch_size batch",
    "data.micro_rows": "micro_batch_size per_device_train_batch_size per_device_batch_size accumulate_grad_batches "
    "gradient_accumulation_steps",
    "data.row_length": "max_length max_len max_seq_len seq_len seq_length sequence_length context_length block_size",
    "data.workers": "num_workers n_workers dataloader_num_workers",
    "model.d_model": "hidden_size hidden_dim embed_dim embedding_dim n_embd dim width",
    "model.n_layers": "num_layers num_hidden_layers n_layer layers depth",
    "model.n_heads": "num_heads num_attention_heads n_head nhead",
    "model.d_ff": "intermediate_size dim_feedforward ffn_dim",
    "objective.mask_rate": "mlm_probability mask_prob mask_ratio masking_rate",
    "objective.pathways": "gmt gene_sets pathway_file",
    "objective.temperature": "tau",
    "optim.lr": "learning_rate max_lr peak_lr base_lr",
    "optim.min_lr_ratio": "min_lr final_lr",
    "optim.warmup_steps": "warmup num_warmup_steps warmup_ratio",
    "optim.schedule_steps": "total_steps lr_decay_steps num_training_steps",
    "optim.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optim.eps": "epsilon adam_epsilon",
    "optim.weight_decay": "wd decay",
    "optim.clip": "gradient_clip_val max_grad_norm grad_clip clip_grad_norm clip_norm",
    "trainer.max_steps": "steps num_steps n_steps train_steps max_train_steps max_iters",
    "trainer.devices": "gpus n_gpus num_gpus num_devices nproc_per_node",
    "trainer.num_nodes": "nnodes n_nodes",
    "trainer.precision": "dtype amp mixed_precision bf16 fp16",
    "trainer.activation_checkpointing": "gradient_checkpointing",
    "trainer.validate_every_steps": "val_check_interval check_val_every_n_epoch eval_steps eval_every",
    "trainer.validation_cells": "limit_val_batches",
    "trainer.patience": "early_stopping_patience early_stopping",
    "task.name": "task finetune fine_tune",
    "task.label": "label_key label_column cell_type celltype labels_key",
    "task.frozen": "freeze freeze_backbone freeze_encoder",
    "task.balanced": "class_weight class_weights",
    "checkpoint.every_steps": "save_steps save_every every_n_train_steps",
    "checkpoint.keep_last": "save_top_k save_total_limit",
    "tracking.mlflow": "mlflow_uri tracking_uri",
    "tracking.experiment": "experiment_name project",
}
_SETTING_OF = {name: setting for setting, names in SETTINGS.items() for name in names.split()}

_EPOCHS = "a run is as long as trainer.max_steps, in optimizer steps"
#: Names of what gm-train does not let a run choose, and what it does instead.
NO_SETTING = {
    "accelerator": "a GPU is used if there is one; CUDA_VISIBLE_DEVICES='' hides it",
    "device": "a GPU is used if there is one; CUDA_VISIBLE_DEVICES='' hides it",
    **dict.fromkeys(["max_epochs", "epochs", "num_epochs", "num_train_epochs", "min_epochs"], _EPOCHS),
    "dropout": "there is no dropout: a resumed run would depend on how many ranks drew it",
    "optimizer": "the optimizer is AdamW; the settings under optim are its own",
    **dict.fromkeys(
        ["scheduler", "lr_scheduler", "lr_scheduler_type"],
        "the learning rate warms up, then follows half a cosine: optim.warmup_steps, optim.schedule_steps",
    ),
    "vocab_size": "the store's vocabulary decides it",
    "vocabulary_size": "the store's vocabulary decides it",
    "shuffle": "cells always come in a random order, decided by run.seed",
    "log_every_n_steps": "every step is recorded in metrics.jsonl",
    "logging_steps": "every step is recorded in metrics.jsonl",
}

_NO_FP16 = "fp16 is not supported: use bf16"
#: Values that other programs have for settings with a choice, and a hint for each.
VALUES = {
    "trainer.precision": {
        **dict.fromkeys(["bf16-mixed", "bf16-true", "bfloat16"], "is it bf16?"),
        **dict.fromkeys(["16", "16-mixed", "16-true", "fp16", "float16", "half"], _NO_FP16),
        **dict.fromkeys(["32", "32-true", "float32", "full"], "is it fp32?"),
    },
    "trainer.devices": {
        "auto": "null takes as many as the launcher started",
    },
    "trainer.strategy": {
        "fsdp": "is it fsdp2?",
        **dict.fromkeys(["deepspeed", "zero", "deepspeed_stage_2"], "is it zero2?"),
        "deepspeed_stage_3": "is it zero3?",
        **dict.fromkeys(["single", "single_device", "none", "dp"], "is it auto? On one rank, it needs no strategy"),
        **dict.fromkeys(["ddp_spawn", "ddp_fork", "ddp_find_unused_parameters_true"], "is it ddp?"),
    },
    "objective.language": {
        **dict.fromkeys(["mlm", "masked_lm", "mask"], "is it masked?"),
        **dict.fromkeys(["clm", "causal", "causal_lm", "autoregressive", "ntp"], "is it next_token?"),
    },
    "model.arch": {
        **dict.fromkeys(["genemamba", "bi-mamba", "bidirectional"], "is it bimamba?"),
        **dict.fromkeys(["mamba2", "mamba-2"], "is it bimamba, with model.mixer=mamba2?"),
        **dict.fromkeys(["bert", "geneformer"], "is it transformer?"),
    },
    "task.name": {
        **dict.fromkeys(["classification", "annotate", "annotation", "finetune", "fine-tune"], "is it classify?"),
        **dict.fromkeys(["pretraining", "pre-train"], "is it pretrain?"),
    },
    "model.kernel": {
        **dict.fromkeys(["triton", "cuda", "mamba", "mamba-ssm"], "is it mamba_ssm?"),
        **dict.fromkeys(["pytorch", "cpu"], "is it torch?"),
    },
}


def advice_on_name(name: str) -> str | None:
    """What to write instead of a name that is no setting, such as "is it optim.lr?"; None if it is not known.

    Args:
        name: as it was written, with or without its section.
    """
    last = name.rsplit(".", 1)[-1].lower().replace("-", "_")
    if last in _SETTING_OF:
        return f"is it {_SETTING_OF[last]}?"
    return NO_SETTING.get(last)


def advice_on_value(setting: str, value: object) -> str | None:
    """What to write instead of a value of a setting, such as "is it bf16?"; None if it is not known."""
    return VALUES.get(setting, {}).get(str(value).lower())
