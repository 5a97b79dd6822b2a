"""Suggests an option, or a key of a config file, for a name that does not exist: by spelling and by meaning."""

from collections.abc import Iterable

SYNONYMS: dict[str, str] = {
    "optim.lr": "learning_rate lr0 base_lr initial_lr",
    "optim.name": "optimizer optimiser opt",
    "optim.weight_decay": "wd decay l2",
    "optim.schedule": "scheduler lr_scheduler lr_schedule lr_policy",
    "optim.milestones": "lr_steps decay_epochs",
    "optim.gamma": "lr_gamma lr_decay decay_rate",
    "optim.warmup_steps": "warmup_iters warmup_epochs num_warmup_steps",
    "optim.clip_norm": "grad_clip clip_grad max_norm max_grad_norm gradient_clip_val",
    "data.train": "train_data train_dir dataset data_dir data_path data train_shards shards",
    "data.eval": "val eval_data eval_dir val_data val_dir validation val_shards test test_data",
    "data.batch_size": "batch bs train_batch_size per_device_batch_size images_per_gpu",
    "data.eval_batch_size": "val_batch_size test_batch_size",
    "data.loaders": "num_loaders dataloaders dataloader_workers loader_workers",
    "data.resize.short_side": "image_size img_size imgsz input_size size resolution min_size",
    "data.resize.long_side": "max_size",
    "data.augment.flip": "hflip horizontal_flip",
    "train.epochs": "epoch num_epochs max_epochs n_epochs",
    "train.accumulate": "accumulation accumulation_steps gradient_accumulation_steps accumulate_grad_batches",
    "train.precision": "amp fp16 bf16 mixed_precision dtype half",
    "train.ema_decay": "ema",
    "train.log_every": "log_interval log_every_n_steps print_freq logging_steps",
    "train.eval_every": "eval_interval val_interval eval_steps check_val_every_n_epoch validate_every",
    "train.checkpoint_every": "save_every save_steps save_interval checkpoint_interval",
    "train.keep_checkpoints": "save_total_limit max_checkpoints keep",
    "evaluate.flip": "tta flip_test",
    "evaluate.scales": "multi_scale multiscale test_scales",
    "evaluate.max_detections": "max_det max_dets",
    "scaling.num_workers": "workers n_workers num_processes nproc_per_node world_size num_gpus ranks processes",
    "scaling.use_gpu": "gpu gpus cuda device accelerator",
    "scaling.min_workers": "elastic",
    "scaling.cpus_per_worker": "cpus num_cpus threads num_threads",
    "scaling.max_failures": "max_retries max_restarts",
    "run.name": "run_name name exp_name",
    "run.storage": "storage storage_path output_dir out_dir save_dir log_dir work_dir output out project",
    "run.tracking": "mlflow tracking_uri mlflow_tracking_uri",
    "run.experiment": "experiment experiment_name",
    "run.init_from": "weights pretrained init load_from finetune fine_tune checkpoint ckpt resume_from",
    "run.resume": "resume",
    "model.backbone.name": "backbone arch architecture",
    "model.backbone.pretrained": "pretrained_backbone imagenet",
    # options of single commands
    "checkpoint": "ckpt model weights run model_path",
    "model": "checkpoint ckpt weights run model_path",
    "run": "checkpoint ckpt run_id",
    "source": "annotations annotation_file coco dataset data path input",
    "input": "source images image video folder path data",
    "output": "out output_dir out_dir save_dir",
    "out": "output output_dir out_dir output_file save_dir",
    "samples": "trials n_trials num_trials num_samples max_trials",
    "concurrent": "max_concurrent max_concurrent_trials parallel",
    "objectives": "metric metrics objective",
    "space": "search_space param_space",
    "to": "alias stage",
    "workers": "num_workers n_workers threads",
    "gpus-per-worker": "gpu gpus use_gpu num_gpus cuda device",
    "score-threshold": "threshold conf min_score score_thr",
    "max-people": "max_poses max_detections top_k",
    "overlays": "visualize visualise draw plot save_images",
    "in-process": "local no_ray",
    "allow-errors": "force ignore_errors",
    "shard-mib": "shard_size maxsize",
    "shuffle-seed": "seed",
    "limit": "max_images max_samples",
    "methods": "method models",
    "method": "methods model",
    "seeds": "repeats num_seeds",
    "count": "images num_images",
}
"""Option -> other names that people use for it, separated by spaces."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The name in ``known`` that ``name`` probably means; empty if none is close.

    Args:
        name: Unknown name that was given, such as ``optim.learning_rate`` or ``batch-size``.
        known: Names that exist, such as ``optim.lr``.
    """
    import difflib  # needed only for wrong names

    names = {_plain(option): option for option in known}
    wanted = _plain(name)
    *_, last = wanted.split(".")
    by_end = [plain for plain in names if plain.rpartition(".")[2] == last]
    by_meaning = [
        plain for plain in map(_plain, SYNONYMS) if plain in names and last in SYNONYMS[_spelled(plain)].split()
    ]
    # --lr and --model.lr both mean optim.lr. Of several candidates, take the one whose sections are spelled most alike.
    if candidates := by_meaning if wanted == last and len(by_end) > 1 else by_end or by_meaning:
        return names[max(candidates, key=lambda plain: difflib.SequenceMatcher(None, plain, wanted).ratio())]
    ends = {plain.rpartition(".")[2]: plain for plain in reversed(names)}
    whole = difflib.get_close_matches(wanted, names, n=1, cutoff=0.75)
    if close := whole or [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.7)]:
        return names[close[0]]
    return ""


_BY_PLAIN = {option.replace("-", "_"): option for option in SYNONYMS}


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def _spelled(plain: str) -> str:
    return _BY_PLAIN[plain]
