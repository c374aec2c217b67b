"""The trainer: sample, score, advantage, update; on one process or several, killed at any moment or not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import accelerate
import numpy as np
import torch
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from tqdm.auto import tqdm

from capreward import prefix
from capreward.advantage import Estimator
from capreward.coroutines import start
from capreward.data import write_rows
from capreward.errors import InputError, NonFiniteError, TooManyMissingError
from capreward.ledger import LedgerWriter
from capreward.records import Item, Rollout
from capreward.scoring import ScoreTable, concatenated
from capreward.suite import RewardSuite
from capreward.train import checkpoint, metrics
from capreward.train.config import TrainConfig
from capreward.train.loss import policy_loss, token_weights
from capreward.train.policy import Policy, Prompt
from capreward.train.rollout import Completions, generate

T = TypeVar("T")
log = logging.getLogger("capreward")

SAMPLED_TOGETHER = 64
"""Rollouts that a process samples in one batch, at most, but for a larger group; scored while the next ones are sampled."""
MAX_NORM = 1.0
"""Gradients longer than this are shortened to it."""
BAD_IN_A_ROW = 3
"""Updates without a finite loss and gradient after which the run stops."""
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
STATE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@dataclass
class Group:
    """An item of the batch, its G rollouts, and what the update needs of them."""

    prompt: Prompt
    completions: Completions
    rollouts: list[Rollout]
    mask: Tensor
    """(G, T), true at the tokens of each completion."""
    reference: Tensor | None = None
    """Log-probs of the reference model, (G, T)."""
    old: Tensor | None = None
    """Log-probs of the policy that sampled, (G, T); known after the first update."""
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(G,)"""


class Trainer:
    """Trains a policy on items with the rewards of a suite.

    What is sampled depends on the seed, the step and the item alone, not on how many processes there are or how
    often the run was killed. Start several processes with `accelerate launch`: DDP, or FSDP in its version 2.

    Args:
        config: what to do. Settings that say where policy, items and suite come from (model, data, suite, judge, ...) are those
            of the command line; here they are handed in.
        policy: what is trained.
        suite: the reward.
        items: with images, and with what the suite's components need.
        held_out: items on which `evaluate` is called before and after.
        estimator: a function like those of `capreward.advantage`, in place of the one that `config` names.
        parts: that a batch is sampled in, at least: one is scored while the next is sampled. 1 is fastest with a judge that
            answers at once.

    Raises:
        InputError: no items, no parts, a number of groups that the processes cannot share equally, or a KL without a reference.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        suite: RewardSuite,
        items: Sequence[Item],
        *,
        held_out: Sequence[Item] = (),
        estimator: Estimator | None = None,
        parts: int = 2,
    ) -> None:
        on_gpu = torch.cuda.is_available()
        self.accelerator = accelerate.Accelerator(
            cpu=not on_gpu,  # sampling wants float64, which other accelerators do not have
            mixed_precision="bf16" if on_gpu else "no",
            # LLaVA's last vision layer, for one, is never used
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)],
        )
        world = self.accelerator.num_processes
        if not items:
            raise InputError("items: got none to train on, expected at least one")
        if parts < 1:
            raise InputError(f"parts: got {parts}, expected a number >= 1")
        if config.groups % world:
            raise InputError(f"groups: got {config.groups}, expected a multiple of the {world} processes")
        if config.kl and not policy.has_reference:
            raise InputError(f"kl: got {config.kl} with a policy that kept no reference; build it with reference=True")
        self.config, self.suite, self.items, self.held_out = config, suite, list(items), list(held_out)
        self.estimator, self.parts = estimator or config.estimator, parts
        if config.gradient_checkpointing:
            _enable_checkpointing(policy.model)
        self.sharded = self._prepare_sharding(policy)
        self.policy = policy.to(self.accelerator.device)
        policy.move_reference(self.accelerator.device)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0, fused=on_gpu)
        self.wrapped, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.step = self.updates = self.skipped = self.bad_in_a_row = 0
        self.clock = metrics.Clock()
        self.log: metrics.Log | None = None
        self.ledger: LedgerWriter

    def train(self, *, resume: bool = False) -> Path:
        """Run to the last step; returns the folder with the trained model.

        Args:
            resume: go on from the newest checkpoint in `config.out`, or from the start if there is none.

        Raises:
            InputError: checkpoints of an earlier run in `config.out`, without `resume`.
            TooManyMissingError: more scores of a batch are missing than the suite allows; a checkpoint was written.
            NonFiniteError: several updates in a row had a loss or gradient that is no finite number, or weights are lost.
        """
        config = self.config
        found = checkpoint.to_resume(config.out, resume)
        state = self._restore(found) if found else {}
        if self.accelerator.is_main_process:
            self.log = metrics.Log(config.out, state.get("positions"), step=self.step)
        self.ledger = self._open_ledger(state.get("ledger", {}))
        if not found:
            set_seed(config.seed, device_specific=True)  # of what a model may draw while it is trained
            self._evaluate_held_out("before")
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        try:
            while self.step < config.steps:
                bar.set_postfix(self._train_step())
                bar.update()
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self._save()
        finally:
            bar.close()
            if self.log:
                self.log.close()
        trained = config.out / "final"
        weights = get_model_state_dict(self.wrapped, options=WHOLE) if self.sharded else None
        if self.accelerator.is_main_process:
            self.policy.save(trained, weights)
        self.accelerator.wait_for_everyone()
        self._evaluate_held_out("after")
        return trained

    def _open_ledger(self, positions: dict[str, int]) -> LedgerWriter:
        """A file of its own for each process, all cut back to the checkpoint by the first before another writes."""
        folder, rank = self.config.out / "ledger", str(self.accelerator.process_index)
        with self.accelerator.main_process_first():
            first = self.accelerator.is_main_process
            return LedgerWriter(folder, writer=rank, positions=positions if first else None)

    def evaluate(self, items: Sequence[Item], suite: RewardSuite | None = None) -> tuple[ScoreTable, list[Rollout]]:
        """Sample one caption of each item and score it; the same random numbers each time.

        Args:
            items: at least one.
            suite: what scores them; the one that is trained on when left out.

        Raises:
            InputError: no items.
        """
        if not items:
            raise InputError("items: got none to evaluate on, expected at least one")
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        numbered = list(enumerate(items))
        # Processes that run in step need the same number of batches: some caption the first items again, for nothing.
        padded = [*numbered, *islice(cycle(numbered), -len(numbered) % world)]
        rollouts: list[Rollout] = []
        mine = padded[rank::world]
        for part in _parts(mine, SAMPLED_TOGETHER):
            uniforms = torch.stack([self._uniforms(2, n, size=1) for n, _ in part])
            _, completions = self._sample([item for _, item in part], uniforms)
            rollouts += [
                Rollout(item=item, caption=self.policy.caption(rows[0]), id=str(n), group=str(n))
                for (n, item), rows in zip(part, completions, strict=True)
            ]
        by_id = {rollout.id: rollout for rollout in self._gathered(rollouts)}
        every = [by_id[str(n)] for n, _ in numbered]
        outcome: list[ScoreTable | Exception | None] = [None]
        if self.accelerator.is_main_process:
            try:
                outcome = [(suite or self.suite).score(every)]
            except Exception as error:  # noqa: BLE001  # the other processes wait, and have to hear of it
                outcome = [error]
        broadcast_object_list(outcome)
        if not isinstance(outcome[0], ScoreTable):
            raise outcome[0] or RuntimeError("nothing came from the main process")
        return outcome[0], every

    def _train_step(self) -> dict[str, str]:
        """One batch: sample, score, update. Returns what the progress bar shows."""
        usage = [judge.usage.snapshot() for judge in self.suite.judges]
        groups, parts = self._rollouts()
        try:
            with self.clock.phase("reference"):
                self._run_reference(groups)
            with self.clock.phase("score"):  # what is left of it
                tables = [part.result() for part in parts]
                table = self._gathered_table(tables)
        finally:
            for part in parts:  # of no use any more, if something went wrong
                part.cancel()
        try:
            self.suite.check_missing(table)
        except TooManyMissingError:
            self._save()  # as of before this step, which a resumed run takes again
            raise
        rollouts = (rollout for group in groups for rollout in group.rollouts)
        for part_table in tables:
            self.ledger.write(self.suite, part_table, list(islice(rollouts, len(part_table))))
        advantages = table.advantages(self.estimator)
        by_id = dict(zip(table.ids, advantages.tolist(), strict=True))
        for group in groups:
            mine = [by_id[str(rollout.id)] for rollout in group.rollouts]
            group.advantages = torch.tensor(mine, dtype=torch.float32, device=self.accelerator.device)
        with self.clock.phase("update"):
            of_update = self._update(groups)
        self.step += 1
        seconds = self.clock.read()
        numbers = table.metrics() | of_update
        numbers |= {f"seconds/{phase}": value for phase, value in seconds.items()}
        numbers["tokens_per_second"] = numbers["tokens"] / sum(seconds.values())
        for judge, before in zip(self.suite.judges, usage, strict=True):
            used = self._gathered([judge.usage.since(before)])
            for key in ("calls", "hits", "failures", "money"):
                numbers[f"judge/{judge.name}/{key}"] = sum(getattr(each, key) for each in used)
        if self.log:
            self.log.step(self.step, numbers, metrics.samples(table, groups[0].rollouts, advantages))
        means = {name: f"{numbers[f'{name}/value']:.2f}" for name in table.names}
        return means | {"length": f"{numbers['length']:.0f}"}

    def _rollouts(self) -> tuple[list[Group], list[Future[ScoreTable]]]:
        """This process's groups of the batch, and their scores in the making."""
        config = self.config
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batch = list(enumerate(self._batch(self.step)))[rank::world]
        groups: list[Group] = []
        parts: list[Future[ScoreTable]] = []
        for part in _parts(batch, min(SAMPLED_TOGETHER // config.group_size, -(-len(batch) // self.parts))):
            with self.clock.phase("generate"):
                uniforms = torch.stack([self._uniforms(1, self.step, n, size=config.group_size) for n, _ in part])
                prompts, sampled = self._sample([item for _, item in part], uniforms)
            new = [
                self._group(f"{self.step}.{n}", item, prompt, completions)
                for (n, item), prompt, completions in zip(part, prompts, sampled, strict=True)
            ]
            groups += new
            parts.append(start(self.suite.ascore([rollout for group in new for rollout in group.rollouts], part=True)))
        return groups, parts

    def _group(self, name: str, item: Item, prompt: Prompt, completions: Completions) -> Group:
        name = f"{item.id}/{name}"
        rollouts = [
            Rollout(
                item=item,
                caption=self.policy.caption(tokens),
                group=name,
                id=f"{name}#{n}",
                metadata={"step": self.step + 1},  # as the logs number it
            )
            for n, tokens in enumerate(completions)
        ]
        lengths = torch.tensor([len(tokens) for tokens in completions], device=self.accelerator.device)
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        return Group(prompt, completions, rollouts, mask)

    def _sample(self, items: Sequence[Item], uniforms: Tensor) -> tuple[list[Prompt], list[Completions]]:
        prompts = [self.policy.prompt(item) for item in items]
        self.policy.eval()
        # DDP's wrapper would look for gradients; FSDP 2 has none, and has to run in step.
        completions = self.accelerator.unwrap_model(self.wrapped)(
            generate,
            prompts,
            uniforms,
            ends=self.policy.ends,
            temperature=self.config.temperature,
            unspeakable=self.policy.unspeakable,
            all_done=self._everybody if self.sharded else bool,
        )
        return prompts, completions

    def _run_reference(self, groups: Sequence[Group]) -> None:
        if not self.config.kl:
            return
        with torch.no_grad(), self.policy.reference_model() as model, self.accelerator.autocast():
            policy = self.accelerator.unwrap_model(self.wrapped)  # for FSDP, which has to bring its shards together
            for group in groups:
                group.reference, _ = policy(lambda _, group=group: self._logprobs(model, group))

    def _logprobs(self, model: Any, group: Group) -> tuple[Tensor, Tensor]:
        completions, T = group.completions, group.mask.shape[1]
        if self.sharded and T == 1:
            # Processes have to run in step, and only behind a first token is there a second forward.
            completions = [[*tokens, *tokens] for tokens in completions]
        logprobs, entropies = prefix.completion_logprobs(
            model,
            group.prompt.tokens,
            completions,
            images=group.prompt.images,
            temperature=self.config.temperature,
        )
        return logprobs[:, :T], entropies[:, :T]

    def _update(self, groups: Sequence[Group]) -> dict[str, float]:
        """The optimiser's steps on a batch; returns what to log of them, the mean over the steps."""
        lengths = self._gathered([len(tokens) for group in groups for tokens in group.completions])
        cut = self._gathered([tokens[-1] not in self.policy.ends for group in groups for tokens in group.completions])
        steps = [
            self._update_once(groups, rollouts=len(lengths), tokens=sum(lengths)) for _ in range(self.config.updates)
        ]
        return {
            **{name: float(np.mean([step[name] for step in steps])) for name in steps[0]},
            "tokens": float(sum(lengths)),
            "length": float(np.mean(lengths)),
            "truncated": float(np.mean(cut)),
            "skipped": float(self.skipped),
        }

    def _update_once(self, groups: Sequence[Group], *, rollouts: int, tokens: int) -> dict[str, float]:
        config = self.config
        world = self.accelerator.num_processes
        self.wrapped.train()
        sums = torch.zeros(4, dtype=torch.float64, device=self.accelerator.device)
        for group in groups:
            last = group is groups[-1]
            # FSDP would hold whole gradients until the last one
            with self.accelerator.no_sync(self.wrapped) if not (last or self.sharded) else nullcontext():
                logprobs, entropies = self.wrapped(self._logprobs, group)
                group.old = logprobs.detach() if group.old is None else group.old
                weights = token_weights(
                    group.mask, config.loss, rollouts=rollouts, tokens=tokens, max_tokens=config.max_tokens
                )
                result = policy_loss(
                    logprobs,
                    group.old,
                    group.advantages,
                    weights,
                    clip=config.clip,
                    reference=group.reference,
                    kl=config.kl,
                )
                # processes average their gradients, where the loss wants their sum
                self.accelerator.backward(result.loss * world)
            seen = (
                result.loss.detach(),
                result.clipped.sum(),
                (result.kl * group.mask).sum(),
                entropies.detach().sum(),
            )
            sums += torch.stack([value.double() for value in seen])
        sums = self.accelerator.reduce(sums, reduction="sum")
        norm = float(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), MAX_NORM))
        loss, clipped, kl, entropy = sums.tolist()
        rate = config.learning_rate * min(1.0, (self.updates + 1) / max(config.warmup, 1))
        if np.isfinite(loss) and np.isfinite(norm):
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            self.optimizer.step()
            self.updates += 1
            self.bad_in_a_row = 0
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
            log.warning("step %d: loss %g, length of the gradient %g; update skipped", self.step, loss, norm)
        self.optimizer.zero_grad()
        if self.bad_in_a_row == BAD_IN_A_ROW:
            raise NonFiniteError(
                f"step {self.step}: {BAD_IN_A_ROW} updates in a row were not finite (loss {loss:g}, gradient {norm:g}); "
                "resume with a lower learning_rate, or look for broken images"
            )
        return {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "clip_fraction": clipped / tokens,
            "kl": kl / tokens,
            "entropy": entropy / tokens,
        }

    def _batch(self, step: int) -> list[Item]:
        """The items of a step: the run goes through all items in a random order, then through all in another."""
        count = len(self.items)
        wanted = range(step * self.config.groups, (step + 1) * self.config.groups)
        orders = {
            epoch: np.random.default_rng([self.config.seed, 0, epoch]).permutation(count)
            for epoch in {place // count for place in wanted}
        }
        return [self.items[orders[place // count][place % count]] for place in wanted]

    def _uniforms(self, *key: int, size: int) -> Tensor:
        """Random numbers for the tokens of some rollouts, (size, max_tokens), the same for the same key."""
        drawn = np.random.default_rng([self.config.seed, *key]).random((size, self.config.max_tokens))
        return torch.from_numpy(drawn)

    def _items_hash(self) -> str:
        """Of the ids, in their order: a run on others would draw different batches."""
        return hashlib.sha256("\n".join(item.id for item in self.items).encode()).hexdigest()

    def _prepare_sharding(self, policy: Policy) -> bool:
        """Whether the model is spread over processes; sets what that needs.

        Raises:
            InputError: a way of spreading, or a model, that sampling in step does not work with.
        """
        kind = self.accelerator.distributed_type
        if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise InputError(f"accelerate is set to {kind}; use DDP, or FSDP in its version 2")
        if kind is not DistributedType.FSDP:
            return False
        plugin: Any = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise InputError("accelerate is set to FSDP in its version 1; use version 2 (--fsdp_version 2)")
        try:
            prefix.check(policy.model)
        except ValueError as error:
            raise InputError(f"FSDP: {error}") from None
        if self.accelerator.mixed_precision == "bf16":
            # accelerate's own choice would round the random numbers, log-probs and sums of gradients
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16,
                reduce_dtype=torch.float32,
                output_dtype=torch.float32,
                cast_forward_inputs=False,
            )
        return True

    def _everybody(self, done: bool) -> bool:
        """Whether all processes are done."""
        undone = torch.tensor(float(not done), device=self.accelerator.device)
        return not bool(self.accelerator.reduce(undone, reduction="sum"))

    def _gathered(self, mine: list[Any]) -> list[Any]:
        """The lists of all processes, one after the other."""
        return list(gather_object(mine))

    def _gathered_table(self, tables: list[ScoreTable]) -> ScoreTable:
        return concatenated(self._gathered(tables))

    def _evaluate_held_out(self, when: str) -> None:
        if not self.held_out:
            return
        table, rollouts = self.evaluate(self.held_out)
        if self.accelerator.is_main_process:
            write_rows(self.config.out / f"{when}.jsonl", table.to_rows(rollouts))

    def _save(self) -> None:
        with self.clock.phase("save"):
            model = get_model_state_dict(self.wrapped, options=STATE)
            # Asked for before the first update, torch would make up a state.
            optimizer = (
                get_optimizer_state_dict(self.wrapped, self.optimizer.optimizer, options=STATE) if self.updates else {}
            )
            random_states = self._gathered([checkpoint.random_states()])
            ledgers = self._gathered([self.ledger.positions()])
            if self.accelerator.is_main_process:
                assert self.log is not None
                state = {
                    "model": model,
                    "optimizer": optimizer,
                    "counters": {name: getattr(self, name) for name in COUNTERS},
                    "random": random_states,
                    "positions": self.log.positions(),
                    # of files that all write to, the longest
                    "ledger": {name: max(each.get(name, 0) for each in ledgers) for each in ledgers for name in each},
                    "items": self._items_hash(),
                    "config": self.config.model_dump(mode="json"),
                    "estimator": _named(self.estimator),
                }
                checkpoint.save(self.config.out / "checkpoints", self.step, state)
            self.accelerator.wait_for_everyone()

    def _restore(self, path: Path) -> dict[str, Any]:
        state = checkpoint.load(path)
        now = self.config.model_dump(mode="json") | {"estimator": _named(self.estimator)}
        # a setting that a checkpoint is too old to know was at its default
        defaults = {name: field.default for name, field in type(self.config).model_fields.items()}
        was = defaults | state["config"] | {"estimator": state.get("estimator", state["config"]["estimator"])}
        if changed := [name for name in now if was[name] != now[name] and name not in MAY_CHANGE]:
            name = changed[0]
            raise InputError(
                f"{path}: was written with {name}={was[name]!r}, got {now[name]!r}; resume with the same settings "
                f"(only {', '.join(MAY_CHANGE)} may change)"
            )
        if state["items"] != self._items_hash():
            raise InputError(f"{path}: was written with other items; resume with the same data")
        options = StateDictOptions(full_state_dict=True, strict=False)  # frozen weights are not in it
        set_model_state_dict(self.wrapped, state["model"], options=options)
        if state["optimizer"]:
            set_optimizer_state_dict(self.wrapped, self.optimizer.optimizer, state["optimizer"], options=options)
            for name, parameter in self.policy.named_parameters():
                if name not in state["optimizer"]["state"]:  # torch makes up a first step for what never had a gradient
                    self.optimizer.optimizer.state.pop(parameter, None)
        for name, value in state["counters"].items():
            setattr(self, name, value)
        states = state["random"]
        checkpoint.restore_random_states(states[self.accelerator.process_index % len(states)])
        return state


def _named(estimator: str | Estimator) -> str:
    """What a checkpoint calls it: functions by their name alone, so that two of one name pass for the same."""
    if isinstance(estimator, str):
        return estimator
    return str(getattr(estimator, "__qualname__", type(estimator).__qualname__))


def _parts(whole: list[T], size: int) -> Iterator[list[T]]:
    """The list in pieces of a size, the last one shorter."""
    for begin in range(0, len(whole), max(size, 1)):
        yield whole[begin : begin + max(size, 1)]


def _enable_checkpointing(model: Any) -> None:
    """Newer transformers call it by another name and warn of the old one."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


COUNTERS = ("step", "updates", "skipped", "bad_in_a_row")
MAY_CHANGE = ("out", "steps", "save_every", "judge", "max_missing", "learning_rate")
