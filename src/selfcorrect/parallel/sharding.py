"""FSDP2: weights, gradients and moments in shards over ranks, by torch's `fully_shard`: over all of them, or over those
of one machine, so that each machine has a copy (HSDP).

Every layer is a unit that is gathered where it computes. Embeddings, last norm and head are one more, gathered for a
whole forward and backward pass, as the loss reads the head's weights outside of the model. Each rank samples with a
plain copy of the model that the shards are gathered into first, on all ranks and in one order: decoding needs all
weights at every token, so that memory is the price of sampling in the process that trains.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from selfcorrect.config import TrainConfig
from selfcorrect.config.parallel import not_in_shards
from selfcorrect.errors import ConfigError
from selfcorrect.models.head import HeadForm
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.masters import Masters
from selfcorrect.models.placement import stack_of
from selfcorrect.models.sharded import fill, from_first, in_shards, whole
from selfcorrect.models.weights import weights
from selfcorrect.parallel import shards
from selfcorrect.parallel.gradients import sum_gradients
from selfcorrect.parallel.launch import launched
from selfcorrect.parallel.ranks import Alone, Batch, Several, Trainer
from selfcorrect.parallel.served import served
from selfcorrect.samplers.base import Resting
from selfcorrect.types import Completion, SamplingParams

Reference = Callable[[TrainConfig, LanguageModel], tuple[LanguageModel | None, str]]
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, of a weight's own shape


class Sharded(Several):
    """Ranks that hold the model's shards. Prompts are not shared: their backward pass would enter gathered layers."""

    shares_prompts, sharded = False, True

    def __init__(self, ranks: Several, config: TrainConfig) -> None:
        """Raises ConfigError where a setting cannot be had in shards."""
        vars(self).update(vars(ranks))
        if why := not_in_shards(config):
            raise ConfigError(why)
        self.shards = self._of_machine() if config.parallel == "hsdp" else self.size
        self._meshes: DeviceMesh | None = None
        self._lm: LanguageModel | None = None
        self._plain: LanguageModel | None = None
        # Where a server samples, one whole copy is enough: in the memory of rank 0's machine, for sending and saving.
        self.keeps_one = config.samples_elsewhere

    @property
    def notes(self) -> list[str]:
        copies = "rank 0's machine has a whole copy" if self.keeps_one else "sampling has a whole copy"
        over = ""
        if self.shards < self.size:
            over = f" over the {self.shards} of a machine, in each of {self.size // self.shards} machines"
        kind = "hsdp" if over else "fsdp2"
        told = f"{self.size} processes, {kind}: weights, gradients and moments in shards{over}; {copies}"
        return [told, *self._of_disks()]

    def settled(self, config: TrainConfig) -> Alone:
        return self

    def load(self, config: TrainConfig) -> LanguageModel:
        """Where one copy is kept, rank 0 alone reads the weights; the others get their shards of it."""
        loaded: list[LanguageModel] = []

        def read() -> HeadForm | None:
            hollow = self.keeps_one and self.rank > 0
            loaded.append(load_model(config.model, config.seed, in_memory=self.keeps_one, hollow=hollow))
            return loaded[0].head_form

        head_form = self.every(read)[0]  # tried on the weights
        return replace(loaded[0], head_form=head_form)

    def reference(self, make: Reference, config: TrainConfig, lm: LanguageModel) -> tuple[LanguageModel | None, str]:
        if lm.adapters or config.samples_reference or not config.uses_reference:
            on_device = config.model.model_copy(update={"reference": "device"})
            return make(config.model_copy(update={"model": on_device}), lm)
        model, _ = sharded_copy(lm, self._mesh(lm), from_one=self.keeps_one)
        frozen = replace(lm, model=model.requires_grad_(False), masters=None)
        return frozen, "reference: a copy of the weights, in shards"

    def _of_machine(self) -> int:
        """How many ranks hold one copy. Raises ConfigError where machines have different numbers of them."""
        launch = launched()
        assert launch, "several processes were started"
        here = launch.beside
        for rank, (local, beside) in enumerate(self.exchange((launch.local, here))):
            if beside != here or not here or self.size % here or rank % here != local:
                raise ConfigError(
                    "parallel = 'hsdp': every machine holds the model once, so each must have as many processes, "
                    f"numbered one machine after the other, and rank {rank} of {self.size} is process {local} of "
                    f"{beside or '?'} on its machine (LOCAL_RANK, LOCAL_WORLD_SIZE); start as many on each, with "
                    "torchrun, or set parallel=fsdp2"
                )
        return here

    def _mesh(self, lm: LanguageModel) -> DeviceMesh:
        """Of the ranks that hold one copy."""
        if self.shards == self.size:
            return init_device_mesh(lm.device.type, (self.size,))
        if self._meshes is None:
            shape = (self.size // self.shards, self.shards)
            self._meshes = init_device_mesh(lm.device.type, shape, mesh_dim_names=("copy", "shard"))
        return self._meshes["shard"]

    def spread(self, trainer: Trainer) -> Trainer:
        plain, reference = trainer.lm, trainer.reference if trainer.has_reference else None
        model, adapters = sharded_copy(plain, self._mesh(plain), from_one=self.keeps_one, trains=True)
        lm = replace(plain, model=model, adapters=adapters, masters=None)
        if plain.masters:  # of an optimiser made before; saved in their place would be what training began with
            plain.masters.let_go()
        self._lm, self._plain = lm, replace(plain, masters=None)
        if reference is not None and plain.adapters:
            reference = replace(lm, view=reference.view)
        base = trainer.base_sampler
        if base and plain.adapters:
            base = Gathering(base, lambda: plain.model)
        if self.keeps_one:
            _keep_in_memory(plain, mine=self.rank == 0)
        sampler: Any = Gathering(trainer.sampler, lambda: self.whole(lm).model)
        if trainer.config.has_engine:
            sampler = self.served = served(self, trainer, lm, lambda: self.whole(lm).model)
        made: Trainer = type(trainer)(trainer.config, lm, reference, sampler, trainer.task, base, self)
        return made

    def whole(self, lm: LanguageModel, *, exact: bool = False) -> LanguageModel:
        """Where one copy is kept, it is rank 0's, and other ranks' has no numbers."""
        assert self._lm is lm, "of the policy alone is there a plain copy"
        assert self._plain
        targets, masters = dict(self._plain.model.named_parameters()), dict[str, Tensor]()
        with torch.no_grad():
            for name, parameter in lm.model.named_parameters():
                if parameter.requires_grad:
                    rounded = exact and targets[name].dtype != parameter.dtype
                    gathered = whole(parameter if rounded else parameter.to(targets[name].dtype))  # on all ranks
                    if self.rank == 0 or not self.keeps_one:
                        targets[name].copy_(gathered)
                    if rounded and self.rank == 0:
                        masters[name] = gathered.cpu()
        return replace(self._plain, masters=Masters(self._plain.model, masters)) if masters else self._plain

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        if not self.shares_disk:
            self.exchange(None, shards.gather(folder, tensors, writes=self.rank == 0), named=False)
            return
        try:
            shards.write(folder, tensors, self.objects, self.named)
        except OSError:
            self.lifeline.agreed = True
            raise

    def read(self, folder: Path, trainer: Any) -> dict[str, Tensor]:
        like = {f"model/{name}": tensor for name, tensor in weights(trainer.lm).items()}
        parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        for key in MOMENTS:
            like |= {f"optimizer/{number}.{key}": tensor for number, tensor in enumerate(parameters)}
        if not self.shares_disk:
            return self.sent(lambda: shards.tensors_in(folder), like)
        return shards.read(folder, like, self.objects)

    def handed(self, read: Callable[[], Mapping[str, Tensor]], model: Any) -> dict[str, Tensor]:
        return self.hollow(read) if in_shards(model) else super().handed(read, model)  # shards take rank 0's numbers

    def idle(self, batch: Batch, group: int, pieces: Callable[[Batch], int]) -> list[Batch]:
        of_rank = [pieces(self.own(batch, group, rank)) for rank in range(self.size)]
        missing = max(of_rank) - of_rank[self.rank]
        if not missing:
            return []
        row = batch.select((batch.attempt_BT > 0).any(1).nonzero()[0])
        nothing = replace(
            row, advantages_BT=torch.zeros_like(row.advantages_BT), kl_coef_BT=torch.zeros_like(row.kl_coef_BT)
        )
        return [nothing] * missing

    def check_alike(self, lm: LanguageModel) -> None:
        if self.shards < self.size:  # else no weight is held twice
            super().check_alike(lm)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Backward passes have summed them over the ranks that share a copy: once a step, over the copies."""
        if self.shards < self.size:
            assert self._meshes
            sum_gradients(parameters, self._meshes["copy"].get_group())

    def clip(self, parameters: Sequence[Tensor], most: float) -> float:
        return float(whole(torch.nn.utils.clip_grad_norm_(parameters, most)))


class Gathering:
    """A sampler of a plain copy. weights: gathers the copy, and gives it."""

    def __init__(self, sampler: Any, weights: Callable[[], Any]) -> None:
        self._sampler, self._weights = sampler, weights

    @property
    def watch(self) -> Any:
        return self._sampler.watch

    @watch.setter
    def watch(self, watch: Any) -> None:
        self._sampler.watch = watch

    def load_weights(self, model: Any) -> None:
        """As they are now. model: in shards, and not read."""
        self._sampler.load_weights(self._weights())

    def rest(self) -> None:
        if isinstance(self._sampler, Resting):
            self._sampler.rest()

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        completions: list[Completion] = self._sampler.sample(prompts, params)
        return completions


def _keep_in_memory(lm: LanguageModel, *, mine: bool) -> None:
    """The model leaves the device: to the machine's memory where it is `mine`, else its weights are given up."""
    if mine:
        lm.model.to("cpu")
        return
    for parameter in lm.model.parameters():
        parameter.data = parameter.data.new_empty(0)


def sharded_copy(
    lm: LanguageModel, mesh: DeviceMesh, *, from_one: bool = False, trains: bool = False
) -> tuple[Any, Any]:
    """The model and its adapters again, in shards. It never takes more memory than those: the layers begin as views.

    from_one: rank 0's model counts, and others' may have no numbers. trains: weights of lower precision that train are
    float32 in the shards, and become what they were as they are gathered: the shards are their masters.
    """
    views = {id(p): torch.nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in lm.model.parameters()}
    model, adapters = copy.deepcopy((lm.model, lm.adapters), dict(views))
    shard(model, mesh, masters=trains)
    if from_one:
        source = dict(lm.model.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():  # 4-bit ones, every rank has read
                fill(parameter, source[name])
        for buffer in model.buffers():  # kept in no file, some of them: what turns positions into angles
            buffer.copy_(from_first(buffer, buffer.device))
    return model, adapters


def shard(model: Any, mesh: DeviceMesh, *, masters: bool = False) -> None:
    """In place. Gradients are summed, not averaged: the loss has the whole step's denominator.

    Forward passes begin at the decoder (models/language_model.py), so that is where the outermost unit is gathered.
    """
    small = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype.itemsize < torch.float32.itemsize}
    policy = MixedPrecisionPolicy()
    if masters and small:
        (stored,) = small
        policy = MixedPrecisionPolicy(param_dtype=stored, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in (*stack_of(model), model):
        for parameter in layer.parameters() if masters else ():
            if parameter.dtype in small:
                parameter.data = parameter.data.float()  # of one layer at a time
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=layer is not model)
    decoder = model.get_decoder()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    model.decode = MethodType(lambda _, *args, **kwargs: decoder(*args, **kwargs), model)
    register_fsdp_forward_method(model, "decode")
    model.get_decoder = lambda: model.decode
