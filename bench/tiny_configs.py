"""Tiny configurations of mlx-lm's architectures: `SMALL` by field name, and what each has otherwise."""

from typing import Any

VOCABULARY = 160
WINDOW_TOKENS = 12

# Field name -> a small value; for fields with defaults too, which are a published model's size.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "hidden_dim", "d_model", "n_embd", "model_dim", "block_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "n_inner", "ff_intermediate_size"), 96),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size", "shared_intermediate_size"), 96),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_heads", "n_head", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_attention_groups"), 2),
    **dict.fromkeys(("swa_num_key_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "swa_head_dim", "swa_v_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("kv_channels", "hidden_size_per_head", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "laurel_rank", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "num_vocab", "embedding_size"), VOCABULARY),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_expert_intermediate_size", "expert_ffn_hidden_size", "share_expert_dim"), 32),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "decoder_sparse_step", "moe_layer_freq"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("routed_scaling_factor", "moe_routed_scaling_factor", "moe_router_scaling_factor"), 1.0),
    **dict.fromkeys(("logits_scaling", "embedding_multiplier", "residual_multiplier", "scale_emb", "scale_depth"), 1.0),
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon"), 1e-5),
    **dict.fromkeys(("rope_theta", "swa_rope_theta", "rope_local_base_freq"), 10000.0),
    **dict.fromkeys(("max_position_embeddings", "model_max_length", "n_positions", "n_ctx", "block_size"), 512),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), WINDOW_TOKENS),
    **dict.fromkeys(("loop_window_size",), WINDOW_TOKENS),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("linear_conv_kernel_dim", "conv_kernel", "mamba_d_conv", "conv1d_width", "conv_window"), 4),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("use_bias", "attention_bias", "mlp_bias", "bias", "mamba_proj_bias", "conv_bias"), False),
    **dict.fromkeys(("tie_word_embeddings",), False),
    **dict.fromkeys(("norm_topk_prob", "use_conv_bias", "mamba_conv_bias", "use_qk_norm"), True),
    "partial_rotary_factor": 0.5,
    "attention_multiplier": 0.25,
    "conv_L_cache": 3,
    "mamba_expand": 2,
    "mlp_only_layers": [],
    "rope_scaling": None,
    "time_step_limit": (0.001, 100.0),
    "time_step_rank": 8,
}

_SLIDING, _FULL = "sliding_attention", "full_attention"
_MIXED_LAYERS: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL]}
_MLA_HEADS: dict[str, Any] = {"num_key_value_heads": 4}
_LONGCAT: dict[str, Any] = {"zero_expert_num": 2, "mla_scale_q_lora": True, "mla_scale_kv_lora": True}
_PHI3_SMALL = {"vocab_size": 100352, "mup_embedding_multiplier": 1.0, "mup_width_multiplier": 1.0}  # masks ids < 100352
_ALPHA: dict[str, Any] = {"type": "dynamic", "factor": 1.0, "alpha": 1.0}
_QWEN3_5: dict[str, Any] = {"num_hidden_layers": 4, "full_attention_interval": 2, "num_experts": 0}
_YARN: dict[str, Any] = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_LLAMA4_ROPE: dict[str, Any] = {**_ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}
NESTED: dict[str, str] = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "kimi_k25": "deepseek_v3",
    "kimi_vl": "deepseek_v3",
    "lfm2-vl": "lfm2",
    "mistral3": "ministral3",
    "pixtral": "llama",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}

# Architectures for which `SMALL` is enough.
_PLAIN = """
    Klear bailing_moe bitnet dots1 ernie4_5 ernie4_5_moe exaone gemma glm glm4 gpt2 gpt_bigcode gptj granite granitemoe
    helium hunyuan_v1_dense internlm2 internlm3 iquestloopcoder lille-130m llama mimo minimax mixtral nanochat olmo
    olmo2 olmoe phi phi3 phimoe qwen qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open starcoder2 talkie
    telechat3 youtu_llm
"""

# Standard deviations other than 0.5, for architectures that tie their embeddings and would echo with it.
EMBEDDING_SCALES: dict[str, float] = {"gemma2": 0.1, "gemma3n": 0.02, "phi3small": 0.1, "openelm": 0.15, "gpt2": 0.2}

CONFIGS: dict[str, dict[str, Any]] = {
    "afm7": {"num_layers": 4, "num_kv_reuse_layers": 1},
    "afmoe": {"num_hidden_layers": 4, "layer_types": [_SLIDING, _SLIDING, _SLIDING, _FULL], "num_dense_layers": 1},
    "apertus": {"post_norm": False, "qk_norm": True},
    "baichuan_m1": {"num_hidden_layers": 4, "sliding_window_layers": [1, 3], "conv_window": 2},
    "bailing_hybrid": {"num_hidden_layers": 4, "layer_group_size": 2, "group_norm_size": 1, **_MLA_HEADS},
    "bailing_moe_linear": {"num_hidden_layers": 4, "layer_group_size": 2, "group_norm_size": 1},
    "bailing_moe_v3": {"num_hidden_layers": 4, "layer_group_size": 2},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0, "num_hidden_layers": 4, "sliding_window_pattern": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek": {"num_key_value_heads": 4},
    "deepseek_v2": {**_MLA_HEADS, "rope_scaling": _YARN},
    "deepseek_v3": _MLA_HEADS,
    "deepseek_v32": {**_MLA_HEADS, "index_topk": 8},
    "deepseek_v41": {
        "num_hidden_layers": 4,
        "compress_ratios": (1, 4, 4, 1),
        "kv_source_layer_ids": (1, 2),
        "index_source_layer_ids": (1, 2),
        "index_topk": 8,
        "o_groups": 2,
        "hc_mult": 2,
        "rms_norm_eps": 1e-5,
    },
    "exaone4": {"num_hidden_layers": 4, "sliding_window_pattern": "LG"},
    "exaone_moe": {**_MIXED_LAYERS, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_chunk_size": 16},
    "gear": {"num_hidden_layers": 4, "layer_types": ["conv_mixer", _SLIDING, "conv_mixer", _FULL]},
    "gemma3_text": {"num_hidden_layers": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16.0},
    "gemma2": {"query_pre_attn_scalar": 16.0},
    "gemma3n": {
        "text_config": {
            "model_type": "gemma3n_text",
            **_MIXED_LAYERS,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "final_logit_softcapping": 30.0,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
        }
    },
    "gemma4_text": {"num_hidden_layers": 4, "sliding_window_pattern": 2, "num_kv_shared_layers": 2},
    "glm4_moe": {"num_key_value_heads": 2},
    "glm4_moe_lite": _MLA_HEADS,
    "glm_moe_dsa": {
        **_MLA_HEADS,
        "index_topk": 8,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gpt_oss": {**_MIXED_LAYERS},
    "granitemoehybrid": {"num_hidden_layers": 4, "layer_types": ["mamba", "attention", "mamba", "attention"]},
    "hunyuan": {"use_mixed_mlp_moe": True, "use_cla": True, "cla_share_factor": 2, "rope_scaling": _ALPHA},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_dt_rank": 8,
    },
    "kimi_linear": {
        **_MLA_HEADS,
        "num_hidden_layers": 4,
        "linear_attn_config": {
            "kda_layers": [1, 3],
            "full_attn_layers": [2, 4],
            "num_heads": 2,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
        },
    },
    "kimi_k3": {
        "text_config": {
            **_MLA_HEADS,
            "num_hidden_layers": 4,
            "attn_res_block_size": 2,
            "linear_attn_config": {
                "kda_layers": [1, 3],
                "full_attn_layers": [2, 4],
                "num_heads": 2,
                "head_dim": 16,
                "short_conv_kernel_size": 4,
            },
        }
    },
    "laguna": {**_MIXED_LAYERS, "partial_rotary_factor": 1.0},
    "lfm2": {
        "num_hidden_layers": 4,
        "full_attn_idxs": [1, 3],
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": 96,
    },
    "lfm2_moe": {"num_hidden_layers": 4, "full_attn_idxs": [1, 3], "use_expert_bias": True},
    "llama4": {
        "text_config": {
            "model_type": "llama4_text",
            "num_experts_per_tok": 1,
            "attention_chunk_size": 16,
            "interleave_moe_layer_step": 2,
            "num_hidden_layers": 4,
        }
    },
    "llama4_text": {"no_rope_layers": [1, 0]},
    "longcat_flash": {"attention_method": "MLA", "zero_expert_type": "identity", **_LONGCAT},
    "longcat_flash_ngram": _LONGCAT,
    "mamba2": {"head_dim": 16, "num_heads": 8, "intermediate_size": 128},
    "mamba": {"intermediate_size": 128},
    "mellum": {**_MIXED_LAYERS, "rope_parameters": {_SLIDING: _ROPE, _FULL: _ROPE}},
    "mimo_v2_flash": {
        "num_hidden_layers": 4,
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
    "minicpm": {"dim_model_base": 64},
    "minicpm3": {**_MLA_HEADS, "dim_model_base": 64, "rope_scaling": {"type": "longrope"}},
    "minimax_m3_vl": {
        "text_config": {
            "rotary_dim": 8,
            "num_hidden_layers": 4,
            "index_block_size": 4,
            "index_topk_blocks": 4,
            "sparse_attention_freq": [0, 1, 0, 1],
            "moe_layer_freq": [0, 1, 1, 1],
        }
    },
    "ministral3": {**_MIXED_LAYERS, "rope_parameters": _LLAMA4_ROPE},
    "mistral4": {**_MLA_HEADS, "rope_parameters": _LLAMA4_ROPE},
    "muse_glimmer": {**_MIXED_LAYERS},
    "muse_spark": {
        "text_config": {
            **_MIXED_LAYERS,
            "post_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0},
            "layer_rope_theta": [10000.0, 0.0, 10000.0, 0.0],
            "final_logit_softcapping": 30.0,
            "output_multiplier": 1.0,
            "moe_hidden_size": 64,
            "num_shared_experts": 0,
        }
    },
    "nanbeige": {"num_loops": 2},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
        ],
        "num_hidden_layers": 3,
    },
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "M", "-"], "num_hidden_layers": 4},
    "olmo3": {**_MIXED_LAYERS},
    "olmo_hybrid": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", _FULL, "linear_attention", _FULL],
        "linear_allow_neg_eigval": True,
    },
    "openelm": {
        "ffn_dim_divisor": 16,
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_multipliers": [1.5, 1.5],
    },
    "phi3small": {"dense_attention_every_n_layers": 2, "gegelu_limit": 20.0, **_PHI3_SMALL},
    "phixtral": {"num_heads": 4},
    "plamo": {"n_shared_head": 2},
    "plamo2": {"num_hidden_layers": 4, "mamba_step": 2},
    "plamo3": {"num_hidden_layers": 4, "sliding_window_pattern": 2},
    "prism_hadamard_qwen35": {
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [{"path": "model.layers.0.mlp.gate_proj", "embedding": False, "dtype": "float16", "block": 0}],
        "text_config": {**_QWEN3_5, "hidden_size": 128},
    },
    "qwen3_next": {"num_hidden_layers": 4, "full_attention_interval": 2},
    "qwen3_5": {"text_config": _QWEN3_5},
    "qwen3_5_moe": {"text_config": {**_QWEN3_5, "num_experts": 4}},
    "recurrent_gemma": {
        "num_hidden_layers": 4,
        "logits_soft_cap": 30.0,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {},
    "spark2_5": {**_MIXED_LAYERS, "rope_parameters": {_SLIDING: _ROPE, _FULL: _ROPE}},
    "stablelm": {"use_qkv_bias": False},
    "step3p5": {**_MIXED_LAYERS},
}

ARCHITECTURES: tuple[str, ...] = tuple(sorted({*_PLAIN.split(), *NESTED, *CONFIGS}, key=str.lower))
