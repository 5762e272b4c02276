"""The names of this package for type checkers; ``__init__.py`` imports them lazily."""

from tokendetr.config import zoo as zoo
from tokendetr.config.edit import add_bypass as add_bypass
from tokendetr.config.edit import all_or_nothing as all_or_nothing
from tokendetr.config.edit import detectron2_model as detectron2_model
from tokendetr.config.edit import observed as observed
from tokendetr.config.edit import resize as resize
from tokendetr.config.edit import sparsify as sparsify
from tokendetr.config.edit import sparsify_pixel_decoder as sparsify_pixel_decoder
from tokendetr.config.files import checkpoint_file as checkpoint_file
from tokendetr.config.fragments import get_fragment as get_fragment
from tokendetr.config.load import load_config as load_config
from tokendetr.config.overrides import apply_overrides as apply_overrides
from tokendetr.config.wrap import target_name as target_name
from tokendetr.config.wrap import wrap_target as wrap_target
