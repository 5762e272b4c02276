"""The public interface for type checkers; ``__init__.py`` imports it lazily."""

from tokendetr.analysis.flops import count_flops as count_flops
from tokendetr.checkpoint.safetensors import save_safetensors as save_safetensors
from tokendetr.checkpoint.weights import load_weights as load_weights
from tokendetr.config import add_bypass as add_bypass
from tokendetr.config import apply_overrides as apply_overrides
from tokendetr.config import load_config as load_config
from tokendetr.config import resize as resize
from tokendetr.config import sparsify as sparsify
from tokendetr.config import zoo as zoo
from tokendetr.encoder import EncoderContext as EncoderContext
from tokendetr.encoder import TokenEncoder as TokenEncoder
from tokendetr.encoder import TokenPlan as TokenPlan
from tokendetr.encoder import TokenSparsifier as TokenSparsifier
from tokendetr.encoder.forward_context import record_tokens as record_tokens
from tokendetr.errors import CheckpointMismatchError as CheckpointMismatchError
from tokendetr.errors import CheckpointWriteError as CheckpointWriteError
from tokendetr.errors import ConfigError as ConfigError
from tokendetr.errors import DatasetError as DatasetError
from tokendetr.errors import NonFiniteLossError as NonFiniteLossError
from tokendetr.errors import SampleError as SampleError
from tokendetr.errors import UnsafeCheckpointError as UnsafeCheckpointError
from tokendetr.errors import UnsupportedDetectorError as UnsupportedDetectorError
from tokendetr.integrations import Accelerated as Accelerated
from tokendetr.integrations import accelerate as accelerate
from tokendetr.layers import EncoderLayer as EncoderLayer
from tokendetr.layers import MultiScaleDeformableAttention as MultiScaleDeformableAttention
from tokendetr.layers import ScoreHead as ScoreHead
from tokendetr.ops import ms_deform_attn as ms_deform_attn
from tokendetr.ops import packed_attention as packed_attention
from tokendetr.ops import use_reference as use_reference
from tokendetr.predict import Detection as Detection
from tokendetr.predict import Detections as Detections
from tokendetr.predict import Detector as Detector
from tokendetr.predict import Predictor as Predictor
from tokendetr.predict import load as load
from tokendetr.tokens import Identity as Identity
from tokendetr.tokens import Keep as Keep
from tokendetr.tokens import LevelLayout as LevelLayout
from tokendetr.tokens import Merge as Merge
from tokendetr.tokens import Mix as Mix
from tokendetr.tokens import Pack as Pack
from tokendetr.tokens import TokenMap as TokenMap
from tokendetr.train.run import fit as fit

__version__: str
