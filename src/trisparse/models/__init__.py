"""An HF-compatible causal language model whose layers attend by NSA or fully; registers itself on import."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from trisparse.models.causal_lm import TrisparseForCausalLM
from trisparse.models.configuration import TrisparseConfig
from trisparse.models.modeling import TrisparseModel
from trisparse.models.token_step import TokenStep

AutoConfig.register("trisparse", TrisparseConfig, exist_ok=True)
AutoModel.register(TrisparseConfig, TrisparseModel, exist_ok=True)
AutoModelForCausalLM.register(TrisparseConfig, TrisparseForCausalLM, exist_ok=True)

__all__ = ["TokenStep", "TrisparseConfig", "TrisparseForCausalLM", "TrisparseModel"]
