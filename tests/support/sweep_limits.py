"""What the sweep of every class leaves out, and why: nothing else may be.

A class that a new transformers brings and the rules cannot make small fails the sweep, until
:mod:`tests.support.shrinking` knows how, or it is here.
"""

from __future__ import annotations

_TIMM = "its vision tower is timm's, which is not installed"
_INPUTS = "it takes more than tokens, pixels or sound"
_PARTS = "made small, its parts do not fit each other"

#: Of these no model is built: model type and class -> why.
UNBUILT = {
    "apertus1p5 Apertus1p5ForConditionalGeneration": "its tokens of sound begin where images end",
    "dinat DinatForImageClassification": "it needs natten",
    "dory DoryForCausalLM": "its layers are of three kinds that add up",
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
    "nemo_speechlm Nemotron3_5TranscribeForConditionalGeneration": _PARTS,
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
    "Dots3NoteForCausalLM": _PARTS,
    "EfficientNetForImageClassification": _PARTS,
    "HGNetV2ForImageClassification": _PARTS,
    "IdeficsForVisionText2Text": _INPUTS,
    "InstructBlipForConditionalGeneration": _INPUTS,
    "InstructBlipVideoForConditionalGeneration": _INPUTS,
    "Kosmos2ForConditionalGeneration": _INPUTS,
    "KyutaiSpeechToTextForConditionalGeneration": _INPUTS,
    "LayoutLMv3ForQuestionAnswering": _PARTS,
    "LayoutLMv3ForSequenceClassification": _PARTS,
    "LayoutLMv3ForTokenClassification": _PARTS,
    "LevitForImageClassification": _PARTS,
    "LevitForImageClassificationWithTeacher": _PARTS,
    "LiltForQuestionAnswering": _PARTS,
    "LiltForSequenceClassification": _PARTS,
    "LiltForTokenClassification": _PARTS,
    "Llama4ForConditionalGeneration": "it asks its text model for what that has not",
    "LongformerForQuestionAnswering": _INPUTS,
    "LxmertForQuestionAnswering": _INPUTS,
    "Mistral4ForCausalLM": _PARTS,
    "Mistral4ForSequenceClassification": _PARTS,
    "Mistral4ForTokenClassification": _PARTS,
    "MobileViTV2ForImageClassification": _PARTS,
    "PI0ForConditionalGeneration": _INPUTS,
    "Pix2StructForConditionalGeneration": _INPUTS,
    "Qwen3OmniMoeForConditionalGeneration": "it generates, and has no forward",
    "Siglip2ForImageClassification": _INPUTS,
    "Step3p7ForConditionalGeneration": "it wants a sliding window that its own config has not",
    "TextNetForImageClassification": _PARTS,
    "UdopForConditionalGeneration": _INPUTS,
    "VoxtralRealtimeForConditionalGeneration": _INPUTS,
}
