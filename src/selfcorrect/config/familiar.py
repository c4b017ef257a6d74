"""What other trainers call a setting -> what it is called here, for the hint behind an unknown key."""

_STEPS = "`steps` of a stage (stages.NAME.steps)"
_GROUPS = "rollouts.problems_per_step and rollouts.rollouts_per_problem"
_PRECISION = "model.precision (auto, float32, bfloat16)"
_ALL_ALIKE = "none: sampling takes the whole distribution, so that what is trained is what was sampled"
_DATA = "task.name, task.dataset, and task.data=PATH or task.hub"
_NO_DROPOUT = "none: dropout would make the policy differ from the one that sampled"
_LINEAR_ONLY = "none: the adapters of linear layers train, and nothing else"
_RANKS = "parallel (ddp or fsdp2), under torchrun or accelerate launch"
_ON_POLICY = "none: one update for each batch of rollouts, so there is no ratio to clip"
_SPLIT = "none: start a vLLM server with --tensor-parallel-size, and name it in vllm.server"
_KL = "beta1 (every attempt) and beta2 (attempt 1 in stage1) of a stage"

FAMILIAR = {
    "lr": "learning_rate of a stage (stages.NAME.learning_rate)",
    "max_steps": _STEPS, "num_steps": _STEPS, "total_steps": _STEPS, "training_steps": _STEPS, "train_steps": _STEPS,
    "epochs": _STEPS, "num_epochs": _STEPS, "num_train_epochs": _STEPS,
    "save_steps": "checkpoint.every", "save_every": "checkpoint.every", "save_interval": "checkpoint.every",
    "save_total_limit": "checkpoint.keep", "save_strategy": "checkpoint.every",
    "load_best_model_at_end": "checkpoint.select", "metric_for_best_model": "checkpoint.select",
    "eval_steps": "evaluation.every", "eval_strategy": "evaluation.every", "evaluation_strategy": "evaluation.every",
    "eval_every": "evaluation.every", "max_eval_samples": "evaluation.problems",
    "logging_steps": "none: every step is logged", "logging_dir": "output",
    "log_completions": "log.rollouts_tracked", "num_completions_to_print": "log.rollouts_tracked",
    "report_to": "log.trackers", "wandb": "log.trackers: [wandb]", "run_name": "name", "output_dir": "output",
    "batch_size": _GROUPS, "train_batch_size": _GROUPS, "global_batch_size": _GROUPS, "generation_batch_size": _GROUPS,
    "per_device_train_batch_size": "optimizer.micro_batch", "micro_batch_size": "optimizer.micro_batch",
    "gradient_accumulation_steps": "optimizer.micro_batch (rollouts in one forward; the step's gradient is the same)",
    "per_device_eval_batch_size": "rollouts.rows_at_once", "eval_batch_size": "rollouts.rows_at_once",
    "num_generations": "rollouts.rollouts_per_problem", "group_size": "rollouts.rollouts_per_problem",
    "num_return_sequences": "rollouts.rollouts_per_problem", "n_samples_per_prompt": "rollouts.rollouts_per_problem",
    "max_completion_length": "rollouts.max_new_tokens", "response_length": "rollouts.max_new_tokens",
    "max_response_length": "rollouts.max_new_tokens", "max_tokens": "rollouts.max_new_tokens",
    "max_length": "rollouts.max_new_tokens", "num_turns": "rollouts.attempts", "max_turns": "rollouts.attempts",
    "top_p": _ALL_ALIKE, "top_k": _ALL_ALIKE, "min_p": _ALL_ALIKE, "repetition_penalty": _ALL_ALIKE,
    "model_name": "model.path", "model_name_or_path": "model.path", "base_model": "model.path",
    "model_id": "model.path", "pretrained_model_name_or_path": "model.path",
    "device_map": "model.device", "attn_implementation": "model.attention",
    "bf16": _PRECISION, "fp16": _PRECISION, "dtype": _PRECISION,
    "torch_dtype": _PRECISION, "mixed_precision": _PRECISION, "chat_template_kwargs": "model.template_options",
    "dataset_name": _DATA, "datasets": _DATA, "train_file": _DATA, "data_path": _DATA, "dataset_path": _DATA,
    "system_message": "model.system_prompt",
    "n_samples": "evaluation.samples", "num_samples": "evaluation.samples", "pass_at_k": "evaluation.samples",
    "eval_temperature": "evaluation.temperature",
    "beta": _KL, "kl_coef": _KL, "kl_coeff": _KL, "kl_loss_coef": _KL, "init_kl_coef": _KL,
    "target_kl": "stages.NAME.adaptive.target",
    "warmup_ratio": "optimizer.warmup_steps", "num_warmup_steps": "optimizer.warmup_steps",
    "lr_scheduler_type": "optimizer.schedule", "lr_scheduler": "optimizer.schedule", "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas", "adam_betas": "optimizer.betas",
    "adam_epsilon": "optimizer.epsilon",
    "callbacks": "none: an Observer, given to the Python functions (docs/python.md)",
    "torch_compile": "optimizer.compile", "use_liger_kernel": "optimizer.compile",
    "optim": "optimizer.name (adamw, adamw_8bit, paged_adamw_8bit)",
    "max_norm": "optimizer.max_grad_norm", "grad_clip": "optimizer.max_grad_norm",
    "gradient_clipping": "optimizer.max_grad_norm", "clip_grad_norm": "optimizer.max_grad_norm",
    "scale_rewards": "algorithm.normalize_std", "advantage_estimator": "algorithm.baseline",
    "adv_estimator": "algorithm.baseline", "kl_penalty": "algorithm.kl_estimator", "data_seed": "seed",
    "lora_r": "model.lora.rank", "lora_rank": "model.lora.rank", "r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha", "target_modules": "model.lora.targets",
    "lora_target_modules": "model.lora.targets",
    "lora_dropout": _NO_DROPOUT, "dropout": _NO_DROPOUT, "bias": _LINEAR_ONLY, "modules_to_save": _LINEAR_ONLY,
    "task_type": "none: every model here is a causal language model",
    "deepspeed": _RANKS, "fsdp": _RANKS, "fsdp_config": _RANKS, "accelerate": _RANKS, "ddp": _RANKS,
    "tensor_parallel_size": _SPLIT, "vllm_tensor_parallel_size": _SPLIT, "data_parallel_size": _RANKS,
    "use_vllm": "sampler: vllm", "vllm_server_base_url": "vllm.server", "vllm_server_host": "vllm.server",
    "gpu_memory_utilization": "vllm.memory_share", "vllm_gpu_memory_utilization": "vllm.memory_share",
    "load_in_4bit": "model.tuning: qlora", "use_peft": "model.tuning: lora",
    "peft_config": "model.tuning and model.lora", "quantization": "model.tuning: qlora",
    "model_init_kwargs": "model.weights, model.attention", "quantization_config": "model.tuning: qlora",
    "train_dataset": _DATA, "eval_dataset": "task.data: a folder's test.*, or task.evaluate_on",
    "sync_ref_model": "algorithm.reference",
    "mask_truncated_completions": "none: an attempt that is cut off earns nothing",
    "num_iterations": _ON_POLICY, "epsilon_high": _ON_POLICY, "cliprange": _ON_POLICY, "clip_range": _ON_POLICY,
    "loss_type": "none: the mean over rollouts of the sum over tokens",
    "reward_funcs": "task.name, or grade() or grade_many() of a task of your own (task.file)",
    "reward_weights": "none: a reward is one number from 0 to 1, so weigh within grade() of a task of your own",
    "resume_from_checkpoint": "`selfcorrect train --resume RUN`",
    "push_to_hub": "`selfcorrect export RUN FOLDER --push OWNER/NAME`",
    "hub_model_id": "`selfcorrect export RUN FOLDER --push OWNER/NAME`",
}  # fmt: skip
