"""Defaults of a training run, beside those of model, data, optimizer and schedule.

These are detrex's keys. What this project's trainer reads beyond them is in
``tokendetr.config.load.ADDED_TRAIN_DEFAULTS``.
"""

train = {
    # where logs, metrics and checkpoints go
    "output_dir": "./output",
    # weights to start from: a file, a URL or detectron2://...
    "init_checkpoint": "",
    # training steps (optimizer updates); 90000 at batch size 16 are 12 epochs of COCO
    "max_iter": 90000,
    # mixed precision
    "amp": {"enabled": False},
    # DistributedDataParallel
    "ddp": {
        "broadcast_buffers": False,
        "find_unused_parameters": False,
        "fp16_compression": False,
    },
    # gradient clipping: arguments of torch.nn.utils.clip_grad_norm_
    "clip_grad": {
        "enabled": False,
        "params": {
            "max_norm": 0.1,
            "norm_type": 2,
        },
    },
    # random seed, drawn from the clock when negative
    "seed": -1,
    # trial run of 20 iterations with frequent evaluation and logging
    "fast_dev_run": {"enabled": False},
    # a checkpoint every `period` iterations, of which the newest `max_to_keep` are kept
    "checkpointer": {"period": 5000, "max_to_keep": 100},
    # evaluate every `eval_period` iterations
    "eval_period": 5000,
    # write metrics every `log_period` iterations
    "log_period": 20,
    # Weights & Biases; params are the arguments of wandb.init
    "wandb": {
        "enabled": False,
        "params": {
            "dir": "./wandb_output",
            "project": "detrex",
            "name": "detrex_experiment",
        },
    },
    # moving average of the weights, kept on `device` (the model's if empty)
    "model_ema": {
        "enabled": False,
        "decay": 0.999,
        "device": "",
        "use_ema_weights_for_eval_only": False,
    },
    # where the model runs
    "device": "cuda",
}
