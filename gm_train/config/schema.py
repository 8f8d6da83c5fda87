"""Every setting of a run: its type, its default and what it means."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunConfig:
    """The run itself."""

    dir: str = "runs/default"  # directory of the run; if it holds a run already, `fit` resumes it
    seed: int = 0  # weights, order of the data, masks and pathway genes


@dataclass
class DataConfig:
    """The data and how they are read."""

    store: str = ""  # token store made by `gm-train data shards`
    lanes: int = 192  # independent streams of blocks; the number of ranks must divide it
    rows_per_lane: int | None = 1  # rows of a step from each lane; None: fixed at the first start, enough for its ranks
    micro_rows: int | None = None  # rows of a rank's forward pass; None: as many as fit, up to 49,152 tokens
    row_length: int = 2048  # tokens in a row; whole cells are packed into rows
    pool_blocks: int | None = None  # blocks of a lane that are shuffled together; None: those of about 2^20 tokens
    group_cells: int = 1024  # about how many cells are packed together
    weights: dict[str, int] = field(default_factory=dict)  # how often each data set's blocks come in a pass; default 1
    max_damaged_chunks: int = 8  # token chunks that may be damaged: their cells are skipped; more end the run
    workers: int = 0  # loader processes; 0 reads in the training process
    cache_mb: int = 64  # chunk cache of a rank's reading processes, MiB

    @property
    def fixed_rows_per_lane(self) -> int:
        """Rows of a step from each lane, once they are a number."""
        assert self.rows_per_lane is not None, "data.rows_per_lane is fixed at the first start: fix_rows_per_lane"
        return self.rows_per_lane

    @property
    def step_rows(self) -> int:
        """Rows of a step, over all ranks: the global batch."""
        return self.lanes * self.fixed_rows_per_lane


@dataclass
class ModelConfig:
    """The model."""

    arch: str = "bimamba"  # bimamba | mamba (unidirectional) | transformer (the baseline)
    mixer: str = "mamba2"  # what mixes the tokens of a cell within a layer
    aggregation: str = "gate"  # gate | mean | sum | concat | head_gate: how the two directions are joined
    gate_per_layer: bool = False  # true: one gate (or concat) projection per layer; false: one for all, as published
    norm: str = "none"  # none (as published) | pre: RMSNorm before each mixer
    d_model: int = 512  # width of the residual stream
    n_layers: int = 24  # layers, each with a mixer for both directions
    d_state: int = 64  # state of the recurrence, per head channel
    d_conv: int = 4  # taps of the depthwise convolution
    expand: int = 2  # inner width / d_model
    head_dim: int = 64  # channels of a head; divides expand * d_model
    chunk: int = 64  # tokens that the scan processes at once, by matrix products
    n_heads: int = 8  # attention heads of the transformer; each must have an even number of channels
    d_ff: int = 2240  # feed-forward width of the transformer; at d_model 512, 12 layers are as large as 24 of Bi-Mamba
    tie_output: bool = False  # share the embedding with the output layer
    init_from: str = ""  # checkpoint or run directory whose weights a new run begins with; empty: random ones
    kernel: str = "auto"  # auto (by device and packages) | torch | mamba_ssm: what computes the scan


@dataclass
class ObjectiveConfig:
    """What is trained for: the language loss and the pathway loss."""

    language: str = "missing"  # missing (a part of a cell names its other genes) | masked | next_token (unidirectional)
    mask_rate: float = 0.15  # masked: share of tokens to predict
    random_rate: float = 0.1  # masked: share of those that show a random gene instead of `<mask>`
    shown: list[float] = field(default_factory=lambda: [0.2, 0.8])  # missing: range of the shares of a cell's parts
    gamma: float = 0.1  # weight of L_pathway
    pathways: str = ""  # GMT file of gene sets; empty: no L_pathway
    pathway_size: list[int] = field(default_factory=lambda: [10, 200])  # smallest and largest gene set that is used
    pathway_genes: int = 32  # at most so many genes are drawn in a cell
    temperature: float = 0.1  # tau of L_pathway
    paper_compat: bool = False  # allow next_token on the bidirectional model, which leaks its targets

    @property
    def target_rate(self) -> float:
        """Share of a full row's positions that predict. For missing genes, two of a cell with a hundred tokens."""
        return {"masked": self.mask_rate, "missing": 0.02}.get(self.language, 1.0)


@dataclass
class TaskConfig:
    """What the run learns: the objective above, or a label of the cells."""

    name: str = "pretrain"  # pretrain | classify (fine-tune for a label of the cells; usually with model.init_from)
    label: str = ""  # classify: column of obs with the label
    min_cells: int = 5  # classify: a class with fewer training cells is left out
    frozen: bool = False  # classify: true trains the classifier alone, false the model below it too
    head_lr_factor: float = 1.0  # classify: learning rate of the classifier / optim.lr, that of the model below it
    balanced: bool = True  # classify: true weighs classes alike in the loss, false weighs cells alike
    head_layers: int = 1  # classify: linear layers of the classifier, with ReLU between them
    head_width: int = 512  # classify: width between these layers
    max_error: float = 0.1  # classify: largest share of wrong labels; cells that are not certain enough are unknown


@dataclass
class OptimConfig:
    """Optimizer and learning rate."""

    lr: float = 5e-4  # peak learning rate of AdamW
    min_lr_ratio: float = 0.1  # final learning rate / peak
    warmup_steps: int = 1000  # steps in which the learning rate rises from 0 to its peak
    schedule_steps: int | None = None  # steps until the final learning rate; None: trainer.max_steps of the first start
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # decay rates of AdamW's two moments
    eps: float = 1e-8  # added to AdamW's denominator
    weight_decay: float = 0.1  # AdamW's weight decay, of matrices only
    fused: bool = True  # AdamW in one pass over each parameter
    clip: float = 1.0  # largest norm of the whole gradient; a larger one is scaled down


@dataclass
class TrainerConfig:
    """How long and on what the run trains."""

    max_steps: int = 100_000  # optimizer steps, counted from the start of the run
    strategy: str = "auto"  # auto (chosen by size, memory and nodes) | ddp | fsdp2 | zero2 | zero3
    devices: int | None = None  # ranks on a node; None: as many as the launcher started, 1 without a launcher
    num_nodes: int | None = None  # nodes; None: as many as the launcher uses
    precision: str = "fp32"  # fp32 | bf16 (compute; parameters and decay stay fp32)
    compile: bool | None = None  # compile each block, for a minute or more; None: on GPUs with mamba_ssm, but not zero3
    activation_checkpointing: bool = False  # keep only each block's input; compute the rest again for the gradient
    validate_every_steps: int = 1000  # steps between two validations; 0: never
    validation_cells: int = 2048  # at most so many held-out cells in a validation
    patience: int = 0  # end after so many validations without a lower loss, saving each best one; 0: never
    max_bad_steps: int = 10  # steps with non-finite numbers within 1,000 steps; one more rolls the run back
    max_rollbacks: int = 2  # rollbacks before the run stops
    callbacks: list[Any] = field(default_factory=list)  # Lightning's: package.module:Class, or that: {argument: value}


@dataclass
class EvaluationConfig:
    """A fixed panel of cells that is scored while the model trains.

    It changes no step. A run that goes back after bad steps may go back to one of its checkpoints.
    """

    every_steps: int = 0  # steps between two scores of the panel; 0: never
    cells: int = 1000  # at most so many cells in it: a quarter held out, and training cells to learn from
    label: str = ""  # column of obs with cell types, for nearest neighbours beside those of PCA; empty: none
    best_by: str = "auto"  # masked | missing | knn | auto (by the objective): score whose best checkpoint is kept


@dataclass
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    every_steps: int = 1000  # steps between two checkpoints; one is also written at the end, and before leaving
    keep_last: int = 2  # newest checkpoints that are kept; those best by validation loss and by the panel are kept too


@dataclass
class TrackingConfig:
    """Where metrics are sent."""

    loggers: list[str] = field(default_factory=lambda: ["mlflow"])  # any of mlflow, tensorboard, wandb, csv
    mlflow: str = "auto"  # auto: an SQLite file beside the run directory | none | a tracking URI
    experiment: str = "gm-train"  # experiment that the run belongs to


@dataclass
class ClusterConfig:
    """The SLURM job."""

    nodes: int = 1  # nodes of the job
    gpus_per_node: int = 8  # ranks on a node, one GPU each; 0: ranks without GPUs, cluster.tasks_per_node of them
    tasks_per_node: int = 1  # ranks on a node where gpus_per_node is 0
    gpu_request: str = "gpus-per-node"  # gpus-per-node | gres: how the site wants GPUs to be requested
    gpu_type: str = ""  # GPU type within the request, such as h100
    gpu_memory_gb: int | None = None  # memory of a GPU, for `launch`'s plan; None: as gpu_type says, if it is known
    cpus_per_task: int = 8  # cores of a rank: one for each loader worker, the others for PyTorch's threads
    memory: str = ""  # memory of a node, as sbatch --mem; empty: the site's default
    partition: str = ""  # as sbatch --partition; empty: the site's default
    account: str = ""  # as sbatch --account
    qos: str = ""  # as sbatch --qos
    constraint: str = ""  # as sbatch --constraint
    exclude: str = ""  # nodes that the job must not use
    time: str = "24:00:00"  # time limit; the run is signalled before it and requeued
    signal_seconds: int = 180  # USR1 comes so long before the time limit; a step, a validation and a save must fit in
    requeue: bool = True  # requeue the job after a preemption, the time limit or a lost node; the run then resumes
    max_requeues: int = 100  # starts after the first one
    job_name: str = ""  # empty: the name of the run directory
    setup: list[str] = field(default_factory=list)  # shell lines before the ranks start, such as `module load cuda`
    prefix: str = ""  # put before every rank's command, such as `apptainer exec --nv image.sif`
    python: str = ""  # interpreter of the ranks; empty: the one that runs `gm-train launch`
    env: list[str] = field(default_factory=list)  # NAME=value for every rank, such as NCCL_SOCKET_IFNAME=ib0
    sbatch: list[str] = field(default_factory=list)  # further options of sbatch, passed on unchanged
    srun: list[str] = field(default_factory=list)  # further options of srun, passed on unchanged, such as --mpi=pmix


@dataclass
class Config:
    """All settings of a run. Where a default is None, YAML files write null."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
