"""What the sweep of every class leaves out, and why: nothing else may be.

A class that a new transformers brings and the rules cannot make small fails the sweep, until
:mod:`tests.support.shrinking` knows how, or it is here.
"""

from __future__ import annotations

_TIMM = "its vision tower is timm's, which is not installed"
_INPUTS = "it takes more than tokens, pixels or sound"
_STAGES = "made small, its stages do not fit each other"

#: Of these no model is built: model type and class -> why.
UNBUILT = {
    "dinat DinatForImageClassification": "it needs natten",
    "dots3_note Dots3NoteForCausalLM": "its config is read only layer by layer",
    "dots3_note Dots3NoteForConditionalGeneration": "its config is read only layer by layer",
    "fast_vlm FastVlmForConditionalGeneration": _TIMM,
    "gemma3n Gemma3nForConditionalGeneration": _TIMM,
    "gemma4_assistant Gemma4AssistantForCausalLM": "all its layers share another model's keys",
    "gemma4_unified_assistant Gemma4UnifiedAssistantForCausalLM": (
        "all its layers share another model's keys"
    ),
    "granite4_vision Granite4VisionForConditionalGeneration": "its heads have 64 elements each",
    "inkling_mm_model InklingForConditionalGeneration": "it needs scipy",
    "layoutlmv2 LayoutLMv2ForQuestionAnswering": "it needs detectron2",
    "layoutlmv2 LayoutLMv2ForSequenceClassification": "it needs detectron2",
    "layoutlmv2 LayoutLMv2ForTokenClassification": "it needs detectron2",
    "neomme NeoMMEForMaskedLM": "a fourth of a head is more than it has",
    "perception_lm PerceptionLMForConditionalGeneration": _TIMM,
    "qwen2_5_omni Qwen2_5OmniForConditionalGeneration": "it wants a file of voices beside weights",
    "shieldgemma2 Gemma3ForConditionalGeneration": "transformers does not open what it saves",
    "timm_wrapper TimmWrapperForImageClassification": _TIMM,
}

#: These are not run on an input: class -> why.
NOT_RUN = {
    "ASTForAudioClassification": _INPUTS,
    "Blip2ForConditionalGeneration": _INPUTS,
    "BrosForTokenClassification": _INPUTS,
    "EfficientNetForImageClassification": _STAGES,
    "HGNetV2ForImageClassification": _STAGES,
    "IdeficsForVisionText2Text": _INPUTS,
    "InstructBlipForConditionalGeneration": _INPUTS,
    "InstructBlipVideoForConditionalGeneration": _INPUTS,
    "Kosmos2ForConditionalGeneration": _INPUTS,
    "KyutaiSpeechToTextForConditionalGeneration": _INPUTS,
    "LayoutLMv3ForQuestionAnswering": _STAGES,
    "LayoutLMv3ForSequenceClassification": _STAGES,
    "LayoutLMv3ForTokenClassification": _STAGES,
    "LevitForImageClassification": _STAGES,
    "LevitForImageClassificationWithTeacher": _STAGES,
    "LiltForQuestionAnswering": _STAGES,
    "LiltForSequenceClassification": _STAGES,
    "LiltForTokenClassification": _STAGES,
    "LongformerForQuestionAnswering": _INPUTS,
    "LxmertForQuestionAnswering": _INPUTS,
    "MobileViTV2ForImageClassification": _STAGES,
    "PI0ForConditionalGeneration": _INPUTS,
    "Pix2StructForConditionalGeneration": _INPUTS,
    "Qwen3OmniMoeForConditionalGeneration": "it generates, and has no forward",
    "Siglip2ForImageClassification": _INPUTS,
    "TextNetForImageClassification": _STAGES,
    "UdopForConditionalGeneration": _INPUTS,
    "VoxtralRealtimeForConditionalGeneration": _INPUTS,
}
