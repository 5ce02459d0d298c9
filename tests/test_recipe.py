"""``+recipe=``: which file it means, how it is composed over verl's configuration, what the shipped recipes hold."""

import functools
import importlib
import pickle
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.torch_dtypes import PrecisionType

import verl_omni.plugin  # noqa: F401  (registers `+recipe=` with Hydra)
from verl_omni import recipe
from verl_omni.checkpoints import model_directory
from verl_omni.rewards import read_terms

RECIPES = Path(__file__).parent.parent / "recipes"
GRPO, SFT = "ppo_trainer", "sft_trainer_engine"  # configurations of verl.trainer.main_ppo and .sft_trainer
SHIPPED = {
    "r1omni": GRPO,
    "r1omni_cpu": GRPO,
    "emer_sft": SFT,
    "emer_sft_cpu": SFT,
    "mafw_dfew_sft": SFT,
    "mafw_dfew_sft_cpu": SFT,
    "r1omni_open": GRPO,
    "open_sft": SFT,
    "r1omni_qwen2_5_omni": GRPO,
    "r1omni_qwen2_5_omni_cpu": GRPO,
    "emer_sft_qwen2_5_omni": SFT,
    "emer_sft_qwen2_5_omni_cpu": SFT,
    "mafw_dfew_sft_qwen2_5_omni_cpu": SFT,
}
ON_CPU = {"cpu_for_grpo": GRPO, "cpu_for_sft": SFT}  # on top of any recipe
VARIANTS = ("explanation", "dapo", "dr_grpo", "gspo", "rloo", "no_think")  # on top of r1omni or r1omni_cpu

# The original's GRPO settings, one per row of the paper's and the code's.
METHOD = {
    "data.train_batch_size": 16,
    "data.max_response_length": 512,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 16,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.use_kl_loss": True,
    "actor_rollout_ref.actor.kl_loss_coef": 0.04,
    "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.top_k": 50,
    "actor_rollout_ref.rollout.top_p": 1,
    "algorithm.adv_estimator": "grpo",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "reward.reward_manager.name": "accuracy_format",
    "trainer.total_epochs": 2,
}
COLD_START = {
    "data.train_batch_size": 16,
    "optim.lr": 2e-5,
    "optim.lr_scheduler_type": "cosine",
    "optim.lr_warmup_steps_ratio": 0.03,
    "trainer.total_epochs": 5,
}

# All in which r1omni_cpu may differ from r1omni.
PATHS = {"data.train_files", "data.val_files", "actor_rollout_ref.model.path", "trainer.experiment_name"}
SCALE = {  # of a model of a million parameters with short answers, and of a corpus of some hundred clips
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.rollout.max_model_len",
    "trainer.save_freq",
    "trainer.test_freq",
    "trainer.v1.sampler.custom_sampler.path",  # steps of seconds
    "trainer.v1.sampler.custom_sampler.name",
}
HARDWARE = {
    "data.dataloader_num_workers",
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.model.override_config.attn_implementation",
    "actor_rollout_ref.model.use_remove_padding",
    "actor_rollout_ref.model.enable_gradient_checkpointing",
    "actor_rollout_ref.actor.use_torch_compile",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype",
    "actor_rollout_ref.ref.fsdp_config.use_torch_compile",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.rollout.agent.num_workers",
    "reward.reward_model.rollout.dtype",
    "reward.reward_model.rollout.engine_kwargs",
    "reward.reward_model.rollout.enable_sleep_mode",
    "reward.reward_model.rollout.free_cache_engine",
    "reward.reward_model.rollout.max_num_seqs",
    "reward.reward_model.rollout.tensor_model_parallel_size",
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes",
    *(
        f"{part}.rollout.engine_kwargs.vllm.distributed_executor_backend"
        for part in ("actor_rollout_ref", "reward.reward_model")
    ),
    "actor_rollout_ref.rollout.dtype",
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "actor_rollout_ref.rollout.enforce_eager",
    "actor_rollout_ref.rollout.free_cache_engine",
    "actor_rollout_ref.rollout.gpu_memory_utilization",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.rollout.max_num_seqs",
    "ray_kwargs.ray_init.include_dashboard",
    "ray_kwargs.ray_init.num_cpus",
    "ray_kwargs.ray_init.num_gpus",
    "reward.num_workers",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units",
    "trainer.device",
    "trainer.n_gpus_per_node",
}
# Keys that verl's configuration does not list: it hands what is below these to transformers, vLLM or Ray.
HANDED_ON = (
    "reward.reward_kwargs.",  # to the reward manager, which knows its terms
    "actor_rollout_ref.model.override_config.",
    "actor_rollout_ref.rollout.engine_kwargs.vllm.",
    "reward.reward_model.rollout.engine_kwargs.vllm.",
    "model.override_config.",
    "ray_kwargs.ray_init.",
)
UNLISTED = {  # read by verl
    "actor_rollout_ref.rollout.enable_sleep_mode",
    "reward.reward_model.rollout.enable_sleep_mode",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype",
    "engine.mixed_precision.param_dtype",
}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        yield


def composed(name: str, *overrides: str, config: str = GRPO) -> DictConfig:
    return pickle.loads(compose_once(name, overrides, config, Path.cwd()))


@functools.cache
def compose_once(name: str, overrides: tuple[str, ...], config: str, here: Path) -> bytes:
    """Half a second each; ``here``, because a recipe's path starts there. A copy is cheaper to unpickle."""
    return pickle.dumps(compose(config, overrides=[f"+recipe={name}", *overrides]))


def leaves(config: DictConfig | dict, prefix: str = "") -> dict[str, object]:
    """Values by dotted key, interpolations as they are written."""
    tree = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    flat = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def write(path: Path, *lines: str, header: str = "# @package _global_") -> Path:
    path.write_text("\n".join([header, *lines]))
    return path


# ---- which file ------------------------------------------------------------------------------------------------------


def test_a_recipe_is_found_by_shipped_name_absolute_path_and_path_from_here(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    mine = write(tmp_path / "mine" / "short.yaml", "data: {train_batch_size: 4}")
    monkeypatch.chdir(tmp_path)
    for name in (mine, "mine/short.yaml", "mine/short", "./mine/short.yaml"):
        assert composed(str(name), config=SFT).data.train_batch_size == 4
    monkeypatch.chdir(tmp_path / "mine")
    assert composed("short.yaml", config=SFT).data.train_batch_size == 4
    assert composed("../mine/short.yaml", config=SFT).data.train_batch_size == 4
    assert composed("emer_sft", config=SFT).data.train_batch_size == 16
    assert composed(str(RECIPES / "r1omni_cpu.yaml")).trainer.device == "cpu"


def test_recipes_of_two_working_directories_do_not_meet(tmp_path, monkeypatch):
    for folder, seed in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "recipe.yaml", f"data: {{train_batch_size: {seed}}}")
    for folder, seed in (("one", 1), ("two", 2), ("one", 1)):
        monkeypatch.chdir(tmp_path / folder)
        assert composed("recipe.yaml", config=SFT).data.train_batch_size == seed


def test_a_file_here_wins_over_a_shipped_recipe_of_that_name(tmp_path, monkeypatch):
    write(tmp_path / "emer_sft.yaml", "data: {train_batch_size: 4}")
    monkeypatch.chdir(tmp_path)
    assert composed("emer_sft", config=SFT).data.train_batch_size == 4


def test_a_recipe_builds_on_a_shipped_one_and_on_its_neighbour(tmp_path, monkeypatch):
    write(tmp_path / "base.yaml", "defaults: [/recipe/r1omni_cpu, _self_]", "data: {seed: 7}")
    write(tmp_path / "top.yaml", "defaults: [base, _self_]", "trainer: {n_gpus_per_node: 2}")
    monkeypatch.chdir(tmp_path)
    for name in ("top.yaml", tmp_path / "top.yaml"):
        config = composed(str(name))
        assert (config.trainer.device, config.data.seed, config.trainer.n_gpus_per_node) == ("cpu", 7, 2)
        assert config.ray_kwargs.ray_init.num_gpus == 2


def test_overrides_on_the_command_line_win(tmp_path):
    config = composed("r1omni", "actor_rollout_ref.rollout.n=4", "+ray_kwargs.ray_init.num_gpus=3")
    assert config.actor_rollout_ref.rollout.n == 4
    assert config.ray_kwargs.ray_init.num_gpus == 3
    mine = write(tmp_path / "mine.yaml", "data: {train_batch_size: 4}")
    assert composed(str(mine), "data.train_batch_size=2", config=SFT).data.train_batch_size == 2


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_missing_recipe_names_the_file_and_the_shipped_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("recipes/r1omny.yaml", "r1omny", str(tmp_path / "gone.yaml")):
        with pytest.raises(recipe.RecipeError) as error:
            composed(name)
        assert str(tmp_path / name) in str(error.value)
        assert ", ".join(sorted((*SHIPPED, *ON_CPU, *VARIANTS))) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# @package _global_\ndata: {train_batch_size: 4\n", "cannot be read as YAML"),
        ("# @package _global_\ndata:\n\ttrain_batch_size: 4\n", "cannot be read as YAML"),
        ("# @package _global_\n- data\n", "must hold keys and values"),
        ("# @package _global_\ndata: {seed: '${unclosed'}\n", "cannot be read as YAML"),
        ("data: {train_batch_size: 4}\n", "must start with the line `# @package _global_`"),
        ("", "must start with the line `# @package _global_`"),
    ],
)
def test_a_broken_recipe_names_its_file(text, message, tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text(text)
    with pytest.raises(recipe.RecipeError) as error:
        composed(str(broken))
    assert str(broken) in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_not_text_names_itself(tmp_path):
    picture = tmp_path / "picture.yaml"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with pytest.raises(recipe.RecipeError, match=r"picture\.yaml cannot be read as YAML"):
        composed(str(picture))


# ---- the shipped recipes ---------------------------------------------------------------------------------------------


def test_all_recipes_are_shipped():
    assert recipe.shipped() == {name: RECIPES / f"{name}.yaml" for name in (*SHIPPED, *ON_CPU, *VARIANTS)}


@pytest.mark.parametrize("base", ["r1omni", pytest.param("r1omni_cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_verl_accepts_a_variant_of_grpo(variant, base):
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    plain, config = composed(base), composed(f"[{base},{variant}]")
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    get_adv_estimator_fn(config.algorithm.adv_estimator)
    get_policy_loss_fn(config.actor_rollout_ref.actor.policy_loss.loss_mode)
    read_terms(OmegaConf.to_container(config.reward.get("reward_kwargs") or OmegaConf.create()))
    before, after = leaves(plain), leaves(config)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed - {"trainer.experiment_name"}, "a variant changes something"
    assert not changed & {key for key in METHOD if key.startswith("data.") or ".rollout." in key}


@pytest.mark.parametrize("name", [name for name, config in SHIPPED.items() if config == GRPO])
def test_verl_accepts_a_grpo_recipe(name):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = composed(name)
    assert need_reference_policy(config) and not need_critic(config)
    validate_config(config=config, use_reference_policy=True, use_critic=False)  # as verl.trainer.main_ppo calls it
    rollout = config.actor_rollout_ref.rollout
    assert config.data.max_prompt_length + config.data.max_response_length <= rollout.max_model_len
    assert config.data.train_batch_size * rollout.n % config.trainer.n_gpus_per_node == 0


@pytest.mark.parametrize("name", [name for name, config in SHIPPED.items() if config == GRPO])
def test_frames_in_flight_are_bounded_in_training_and_validation(name):
    """verl waits for a batch's answers before it hands out the next; its default validates all rows at once."""
    config = composed(name)
    frames = config.data.get("num_frames") or 8
    clip = frames * 720 * 1280 * 3  # bytes; in an agent worker, and in Ray's store once for each rollout
    rollouts = config.actor_rollout_ref.rollout
    assert config.data.train_batch_size * rollouts.n * clip < 4e9
    assert config.data.val_batch_size * rollouts.val_kwargs.n * clip < 4e9


@pytest.mark.parametrize("name", [name for name, config in SHIPPED.items() if config == SFT])
def test_verl_accepts_an_sft_recipe(name):
    from verl.utils.config import omega_conf_to_dataclass

    config = composed(name, config=SFT)
    assert config.data.train_batch_size % config.trainer.n_gpus_per_node == 0
    for part in ("optim", "engine", "checkpoint"):  # as verl.trainer.sft_trainer reads them
        omega_conf_to_dataclass(config[part])


def test_r1omni_is_the_papers_grpo_stage():
    config = composed("r1omni")
    assert {key: OmegaConf.select(config, key) for key in METHOD} == METHOD
    assert config.data.max_prompt_length >= 1280  # verl counts the 892 media tokens
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    assert (config.trainer.n_gpus_per_node, config.trainer.nnodes) == (8, 1)
    assert config.actor_rollout_ref.model.use_remove_padding and rollout.free_cache_engine and not rollout.enforce_eager
    assert actor.strategy == config.actor_rollout_ref.ref.strategy == "fsdp2"


def test_emer_sft_is_the_papers_cold_start():
    config = composed("emer_sft", config=SFT)
    assert {key: OmegaConf.select(config, key) for key in COLD_START} == COLD_START


def test_fine_tuning_on_labels_alone_is_the_originals_script():
    """scripts/finetune_omni_small_sftonMAFWDFEW.sh: batch 128 and one epoch; the rest as the cold start."""
    cold_start = leaves(composed("emer_sft", config=SFT))
    labels_only = leaves(composed("mafw_dfew_sft", config=SFT))
    changed = {key: labels_only[key] for key, value in cold_start.items() if labels_only[key] != value}
    assert set(changed) == {
        *("data.train_files", "trainer.experiment_name", "data.train_batch_size", "trainer.total_epochs")
    }
    assert (labels_only["data.train_batch_size"], labels_only["trainer.total_epochs"]) == (128, 1)
    assert labels_only["optim.lr"] == 2e-5


def test_the_open_recipes_differ_from_the_papers_in_data_paths_and_epochs_only():
    for name, base, config in (("open_sft", "emer_sft", SFT), ("r1omni_open", "r1omni", GRPO)):
        theirs, ours = leaves(composed(base, config=config)), leaves(composed(name, config=config))
        changed = {key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)}
        assert changed <= PATHS | {"trainer.total_epochs"}


def test_bert_is_frozen_in_fine_tuning_and_trained_in_grpo():
    for name, config in SHIPPED.items():
        model = composed(name, config=config).get("model") or composed(name).actor_rollout_ref.model
        assert bool(model.override_config.get("freeze_bert")) == (config == SFT and "qwen" not in name), name


def test_r1omni_cpu_differs_in_hardware_paths_and_scale_only():
    gpu, cpu = leaves(composed("r1omni")), leaves(composed("r1omni_cpu"))
    differing = {key for key in gpu.keys() | cpu.keys() if gpu.get(key) != cpu.get(key)}
    assert differing - HARDWARE - PATHS - SCALE == set()
    method = METHOD.keys() - SCALE
    assert {key: cpu[key] for key in method} == {key: gpu[key] for key in method}


@pytest.mark.parametrize(("name", "hardware"), [("r1omni_open", "cpu_for_grpo"), ("open_sft", "cpu_for_sft")])
def test_any_recipe_runs_on_a_cpu_with_nothing_else_changed(name, hardware):
    config = ON_CPU[hardware]
    gpu, cpu = leaves(composed(name, config=config)), leaves(composed(f"[{name},{hardware}]", config=config))
    changed = {key for key in gpu.keys() | cpu.keys() if gpu.get(key) != cpu.get(key)}
    of_sft = {"data.num_workers", "engine.use_torch_compile", "engine.mixed_precision.param_dtype"}
    of_sft |= {key.removeprefix("actor_rollout_ref.") for key in HARDWARE}
    assert cpu["trainer.device"] == "cpu" and changed <= (of_sft if config == SFT else HARDWARE)


def dtypes_of(config: DictConfig) -> list[torch.dtype]:
    """In which verl's FSDP engines and vLLM compute; FSDP's default is bfloat16."""
    actor_rollout_ref = config.get("actor_rollout_ref")
    engines = [actor_rollout_ref.actor.fsdp_config, actor_rollout_ref.ref.fsdp_config] if actor_rollout_ref else []
    named = [(engine.get("mixed_precision") or {}).get("param_dtype", "bf16") for engine in engines or [config.engine]]
    return [PrecisionType.to_dtype(name) for name in named + ([actor_rollout_ref.rollout.dtype] if engines else [])]


def test_a_cpu_computes_in_float32_and_by_one_override_in_bfloat16():
    assert dtypes_of(composed("r1omni_cpu")) == [torch.float32] * 3
    assert dtypes_of(composed("r1omni_cpu", "actor_rollout_ref.rollout.dtype=bfloat16")) == [torch.bfloat16] * 3
    for name in ("emer_sft_cpu", "mafw_dfew_sft_cpu"):
        assert dtypes_of(composed(name, config=SFT)) == [torch.float32]
        override = "engine.mixed_precision.param_dtype=bfloat16"
        assert dtypes_of(composed(name, override, config=SFT)) == [torch.bfloat16]


@pytest.mark.parametrize(
    ("cold_start", "grpo"),
    [
        *(("emer_sft", "r1omni"), ("emer_sft_cpu", "r1omni_cpu"), ("open_sft", "r1omni_open")),
        *((f"emer_sft_qwen2_5_omni{where}", f"r1omni_qwen2_5_omni{where}") for where in ("", "_cpu")),
    ],
)
def test_grpo_starts_from_the_cold_starts_last_checkpoint(cold_start, grpo, tmp_path, monkeypatch):
    run = Path(composed(cold_start, config=SFT).trainer.default_local_dir)
    config = composed(grpo)
    started_from = lambda: config.actor_rollout_ref.model.path  # noqa: E731
    monkeypatch.chdir(tmp_path)
    assert started_from() == f"{run}/latest_checkpointed_iteration.txt", "what is missing, for the message"
    for step in (20, 100):
        (run / f"global_step_{step}" / "huggingface").mkdir(parents=True)
        (run / "latest_checkpointed_iteration.txt").write_text(f"{step}\n")
        assert started_from() == f"{run}/global_step_{step}/huggingface"


def test_the_latest_checkpoint_is_found_for_either_trainer(tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    for part in ("huggingface", "actor/huggingface"):
        folder = tmp_path / "global_step_7" / part
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
        assert model_directory(tmp_path) == model_directory(folder) == folder
    with pytest.raises(FileNotFoundError, match="no config"):
        model_directory(tmp_path / "elsewhere")


@functools.cache
def keys_of_verl(config: str) -> Set[str]:
    return leaves(compose(config)).keys()


@pytest.mark.parametrize("name", [*SHIPPED, *ON_CPU, *VARIANTS])
def test_every_key_of_a_recipe_is_one_that_verl_reads(name):
    """verl ignores a misspelt key without a word."""
    known = keys_of_verl((SHIPPED | ON_CPU).get(name, GRPO))
    written = leaves(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    written.pop("defaults", None)  # Hydra's, as the next
    written = {key: value for key, value in written.items() if not key.startswith("hydra.callbacks.")}
    unknown = {key for key in written.keys() - known - UNLISTED if not key.startswith(HANDED_ON)}
    assert unknown == set()


# ---- verl's command line ---------------------------------------------------------------------------------------------


def verl_main(module: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``python -m module`` does after its imports, in this process."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    importlib.import_module(module).main()


def test_sft_trainer_stops_at_a_missing_recipe(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        verl_main("verl.trainer.sft_trainer", "+recipe=recipes/emer.yaml", monkeypatch=monkeypatch)
    printed = capfd.readouterr().err
    assert f"no recipe 'recipes/emer.yaml': there is no file {tmp_path}/recipes/emer.yaml" in printed
    assert "emer_sft, emer_sft_cpu" in printed


@pytest.mark.parametrize(
    ("module", "name", "key"),
    [
        ("verl.trainer.main_ppo", "r1omni_cpu", "actor_rollout_ref.model.path"),
        ("verl.trainer.sft_trainer", "emer_sft_cpu", "model.path"),
    ],
)
def test_missing_files_end_the_command_with_where_to_get_them(module, name, key, tmp_path, monkeypatch):
    rows = tmp_path / "rows.parquet"
    rows.touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        verl_main(module, f"+recipe={name}", f"data.train_files=[{rows}]", monkeypatch=monkeypatch)
    message = str(ended.value)
    assert message.startswith(f"not there, seen from {tmp_path}:\n{key}: outputs/demo/")
    assert "`make demo` makes these" in message and str(rows) not in message


def test_a_model_may_be_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = OmegaConf.create(
        {
            "model": {"path": "some/model"},
            "data": {"train_files": "hdfs://rows", "val_files": None},
            "trainer": {"default_local_dir": "run"},
        }
    )
    with pytest.raises(SystemExit, match=r"model\.path: some/model\nremedy; or name others"):
        recipe.CheckPaths("remedy").on_job_start(config)
    (tmp_path / "hub" / "models--some--model").mkdir(parents=True)
    recipe.CheckPaths("remedy").on_job_start(config)
    config.data.train_files = ["rows.parquet"]
    with pytest.raises(SystemExit, match=r"data\.train_files: rows\.parquet\nremedy; or name others"):
        recipe.CheckPaths("remedy").on_job_start(config)


def test_a_run_killed_while_it_noted_a_checkpoint_goes_on_from_it(tmp_path):
    """verl's GRPO trainer empties the file with the checkpoint's number before it writes the number."""
    config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path)}})
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.touch()
    with pytest.raises(SystemExit, match="is empty, and no checkpoint lies beside it"):
        recipe.CheckPaths("remedy").on_run_start(config)
    for step in (9, 10, 11):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    for step in (9, 10):  # the data loader's state comes last
        (tmp_path / f"global_step_{step}" / "data.pt").touch()
    with pytest.warns(UserWarning, match="is empty, as a kill leaves it; going on from global_step_10"):
        recipe.CheckPaths("remedy").on_run_start(config)
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_10")
    tracker.write_text("9")
    recipe.CheckPaths("remedy").on_run_start(config)
    assert tracker.read_text() == "9", "what is on record stays"


@pytest.mark.parametrize(
    ("config", "name", "override"),
    [
        (GRPO, "r1omni", "actor_rollout_ref.actor.strategy=fsdp"),
        (SFT, "emer_sft", "engine.strategy=fsdp"),
        (GRPO, "r1omni_cpu", "skip.rollout_tq.enable=True"),
    ],
)
def test_settings_that_cannot_work_end_the_command(config, name, override, monkeypatch):
    check = recipe.CheckSettings()
    check.on_job_start(composed(name, config=config))
    with pytest.raises(SystemExit, match=f"{override}: "):
        check.on_job_start(composed(name, override, config=config))
    monkeypatch.setenv("VERL_OMNI_SHARING", "0")  # then nothing refers to a clip stored elsewhere
    if "rollout_tq" in override:
        check.on_job_start(composed(name, override, config=config))


@pytest.mark.parametrize(
    "name",
    [n for n, config in SHIPPED.items() if config == GRPO]
    + [f"[{base},{variant}]" for base in ("r1omni", "r1omni_cpu") for variant in VARIANTS],
)
def test_micro_batches_divide_what_each_rank_has(name):
    check, config = recipe.CheckSettings(), composed(name)
    check.on_job_start(config)
    config.trainer.n_gpus_per_node = 1
    check.on_job_start(config)
    actor = config.actor_rollout_ref.actor
    actor.ppo_micro_batch_size_per_gpu *= 3
    with pytest.raises(
        SystemExit, match=f"actor.ppo_micro_batch_size_per_gpu={actor.ppo_micro_batch_size_per_gpu}: it"
    ):
        check.on_job_start(config)


def test_more_ranks_than_micro_batches_end_the_command():
    with pytest.raises(SystemExit, match=r"=64: it must divide the 32 rows that a rank of 4 has of 16 prompts with 8"):
        recipe.CheckSettings().on_job_start(composed("r1omni_cpu", "trainer.n_gpus_per_node=4"))
