"""Every setting of a recipe, as frozen models. recipe.py reads them from YAML."""

from selfcorrect.config.compare import CompareConfig, SearchConfig
from selfcorrect.config.engines import VllmConfig
from selfcorrect.config.run import (
    LAB_MODEL,
    PLAIN_TEMPLATE,
    AlgorithmConfig,
    Config,
    EvaluationConfig,
    LabBaseConfig,
    LogConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SelfRefineConfig,
    TrainConfig,
)
from selfcorrect.config.stages import (
    STAGE_KINDS,
    Annealed,
    MultiTurn,
    OwnObjective,
    PairSFT,
    RLStage,
    SingleTurn,
    Stage,
    StageBase,
    StageOne,
    StageTwo,
    Star,
    SupervisedStage,
)
from selfcorrect.config.tasks import (
    TASK_KINDS,
    CodeConfig,
    CountdownConfig,
    CustomConfig,
    HubConfig,
    MathConfig,
    RepairConfig,
    TaskConfig,
)
